"""Updates that are summed before they are decoded: the mean of n sites costs one decode, not n."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.codecs import Sketch
from fedpeft.errors import Defect, PayloadError
from fedpeft.strategies import Update


@dataclass
class _Pool:
    """Sums over updates whose sketches have one key."""

    sketch: Sketch
    values: NDArray[np.float64]
    weight: float = 0.0

    def add(self, values: NDArray[np.float32], weight: float, factor: float) -> None:
        self.values += np.multiply(values, weight * factor, dtype=np.float64)
        self.weight += weight

    def mean(self) -> Update:
        delta = self.sketch.spread((self.values / self.weight).astype(np.float32))
        if not kernels.all_finite(delta.numpy()):
            raise PayloadError(Defect.NON_FINITE, f"a mean of {self.values.size} numbers decoded to infinity or NaN")
        return Update(delta, self.weight)


class Pools(Sequence[Update]):
    """The weighted means of updates, of one weight together; one mean for each key of their sketches.

    A strategy that is `averaging` makes the same of them, but for rounding, as of the updates. Sums are float64, in the
    order of `add`. Each mean is decoded whenever it is read, so memory grows with the numbers that are sent, not with
    the adapter.

    Raises:
        PayloadError: on reading, a mean decodes to infinity or NaN, as none does of what `Sketch.values` lets pass.
    """

    def __init__(self) -> None:
        self._pools: dict[Hashable, _Pool] = {}

    def add(self, sketch: Sketch, values: NDArray[np.float32], weight: float, factor: float = 1.0) -> None:
        """Add an update, whose delta is to be multiplied by a factor."""
        pool = self._pools.setdefault(sketch.key, _Pool(sketch, np.zeros(values.shape)))
        pool.add(values, weight, factor)

    def __len__(self) -> int:
        return len(self._pools)

    @overload
    def __getitem__(self, i: int) -> Update: ...
    @overload
    def __getitem__(self, i: slice) -> list[Update]: ...
    def __getitem__(self, i: int | slice) -> Update | list[Update]:
        pools = list(self._pools.values())
        return [pool.mean() for pool in pools[i]] if isinstance(i, slice) else pools[i].mean()
