"""A few directions of a space, drawn from a seed, that all who take part step along."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.kernels import device
from fedpeft.random import Purpose, Stream


@dataclass(frozen=True)
class Subspace:
    """K directions of length 1 at right angles to each other, the same for a whole run.

    They are rows of the randomised Hadamard transform of the codec `SRHT`: random signs, blocks of powers of two that
    stay in the processor's cache, one row at random from each of K strata. A direction is zero outside its block. Any
    sum of directions costs one transform, which is additions alone, and so comes to the same bits from numpy, from
    numba, and from torch on any device. FedKSeed (Qin et al., 2023, arXiv 2312.06353) keeps a pool of K seeds of normal
    vectors instead: nearly orthogonal, and each is drawn in full when it is used.

    >>> Subspace(4, 2, seed=0).along(np.array([2.0]), torch.zeros(4), np.array([1]))
    tensor([-1.,  1.,  1.,  1.])

    Args:
        numel: d, of the space.
        count: K, a power of two up to d.
        seed: of the run.
        block: coordinates that are transformed together, a power of two.
    """

    numel: int
    count: int
    seed: int
    block: int = 1 << 16

    def __post_init__(self) -> None:
        for name in ("count", "block"):
            value = getattr(self, name)
            if type(value) is not int or value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value!r}")
        if self.count > self.numel:
            raise ValueError(f"count: {self.count} directions in a space of {self.numel}; take fewer")

    def along(
        self, amounts: NDArray[np.floating], like: Float[Tensor, " d"], chosen: NDArray[np.int64] | None = None
    ) -> Float[Tensor, " d"]:
        """The sum of directions, each times its amount.

        Args:
            amounts: one for each direction that is meant; rounded to float32.
            like: where this lies, the sum shall lie.
            chosen: which directions, rising; None: all.
        """
        y, rows = amounts.astype(np.float32), self._rows if chosen is None else self._rows[chosen]
        if not device.holds(like):
            return torch.from_numpy(kernels.spread_hadamard(y, self._edges, self._signs, rows, self._lengths))
        there, places = torch.from_numpy(y).to(like.device), torch.from_numpy(rows).to(like.device)
        return device.spread_hadamard(there, self._edges, self._signs_on(like.device), places, self._lengths)

    def products(self, x: Float[Tensor, " d"]) -> NDArray[np.float32]:
        """Of a vector with all directions, float32[K]."""
        if not device.holds(x):
            return kernels.sample_hadamard(x.numpy(), self._edges, self._signs, self._rows, self._lengths)
        rows = torch.from_numpy(self._rows).to(x.device)
        return device.to_host(device.sample_hadamard(x, self._edges, self._signs_on(x.device), rows, self._lengths))

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        return kernels.halving_edges(self.numel, self.block)

    @cached_property
    def _lengths(self) -> NDArray[np.float32]:
        """What brings the rows of each block to length 1: roots of powers of two, which all machines round alike."""
        return np.sqrt(1 / np.diff(self._edges)).astype(np.float32)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return kernels.stratified(self._stream.words(2 * self.count), self.numel)

    @cached_property
    def _signs(self) -> NDArray[np.uint32]:
        return self._stream.words(-(-self.numel // 32), start=2 * self.count)

    def _signs_on(self, where: torch.device) -> Tensor:
        return torch.from_numpy(self._signs.astype(np.int64)).to(where)

    @property
    def _stream(self) -> Stream:
        return Stream(self.seed, Purpose.DIRECTION)
