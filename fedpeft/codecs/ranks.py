"""Rankings instead of values: the order of an adapter's numbers in each slot, and how far they reach."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels, ranking
from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, finite, take
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space


@dataclass(frozen=True)
class Ranks(Codec):
    """What a client of FRL sends: the order of its scores in each slot (Mozaffari et al., 2023, arXiv 2110.04350).

    It is the order of start + delta, equal numbers in their own order, and beside it the least and the largest of the
    slot; decoded, the numbers lie evenly between these two in that order, less the start. The strategy `RankVote`
    looks at the order alone. A place takes 1, 2 or 4 bytes, by the size of the slot (the least that can be sent is
    log2(n!) / n bits, 14.6 for 65 thousand): more than a ternary update.

    The order survives the rounding of start + delta where a slot has up to a million numbers and the start is not
    beyond what a score reaches.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (4,), "head"),)), Context()
    >>> parts = Ranks().encode(torch.tensor([0.0, 9.0, 1.0, 3.0]), space, ctx)
    >>> parts["order.0"].values
    array([0, 2, 3, 1], dtype=uint8)
    >>> Ranks().decode(parts, space, ctx)
    tensor([0., 9., 3., 6.])
    """

    reads: ClassVar[frozenset[str]] = frozenset({"start"})

    def layout(self, space: Space) -> Layout:
        """An order for each slot that has a number, and the ends of all."""
        orders = {
            f"order.{i}": Field("numbers", end - begin, dtype=_dtype(end - begin), permutation=True)
            for i, begin, end in _slots(space)
        }
        return {**orders, "ends": Field("numbers", 2 * len(orders))}

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Rank the adapter.

        Raises:
            ValueError: a coordinate of the delta, or of the adapter, is not finite.
        """
        x = torch.from_numpy(finite(delta))
        if ctx.start is not None:
            x = torch.from_numpy(finite(ctx.start + x))
        parts, ends = {}, []
        for i, begin, end in _slots(space):
            order = ranking.order(x[begin:end])
            parts[f"order.{i}"] = Numbers(order.numpy().astype(_dtype(end - begin)))
            ends += [x[begin + order[0]], x[begin + order[-1]]]
        return {**parts, "ends": Numbers(np.array(ends, np.float32))}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Numbers in that order, evenly between the ends.

        Raises:
            PayloadError: a least number is larger than the largest, or the delta is beyond float32.
        """
        ends = take(parts, "ends", Numbers).values.astype(np.float64).reshape(-1, 2)
        out = torch.zeros(space.numel, dtype=torch.float32, device="cpu")
        for (i, begin, end), (least, most) in zip(_slots(space), ends, strict=True):
            if least > most:
                raise PayloadError(Defect.COUNT, f"slot {i}: its least number {least:g} is larger than {most:g}")
            order = torch.from_numpy(take(parts, f"order.{i}", Numbers).values.astype(np.int64))
            evenly = torch.linspace(least, most, end - begin, dtype=torch.float64, device="cpu")
            out[begin:end][order] = evenly.float()
        if ctx.start is not None:
            out -= ctx.start
        if not kernels.all_finite(out.numpy()):
            raise PayloadError(Defect.NON_FINITE, "what leads from the adapter to the ranked one is beyond float32")
        return out


def _slots(space: Space) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each slot that has a number."""
    return ((i, begin, end) for i, (begin, end) in enumerate(pairwise(space.bounds)) if end > begin)


def _dtype(size: int) -> str:
    return "uint8" if size <= 1 << 8 else "uint16" if size <= 1 << 16 else "uint32"
