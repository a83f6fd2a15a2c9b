"""Sums over many updates, dense and ternary: blocks that stay in cache, bit planes that are not written out.

Dense updates are added first, one after the other, then ternary ones, summed among themselves by eights. So a sum's
last bit depends on the order of the updates and on which of them are added together, but on nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.kernels import folding, turning
from fedpeft.strategies.base import Context, Summands, Update
from fedpeft.strategies.columns import columns
from fedpeft.strategies.planes import Trim, side_by_side
from fedpeft.ternary import TernaryDelta

BLOCK = 1 << 16
_MANY = 128  # ternary updates whose tables of sums fit the cache
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ballot:
    """Four running sums of shape (d,), float64.

    Args:
        plus: of positive parts.
        minus: of the magnitudes of negative parts.
        weight_plus: of the votes of those who are positive.
        weight_minus: of those who are negative.
    """

    plus: Float[Tensor, " d"]
    minus: Float[Tensor, " d"]
    weight_plus: Float[Tensor, " d"]
    weight_minus: Float[Tensor, " d"]

    @property
    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The same memory, as numpy has it."""
        return self.plus.numpy(), self.minus.numpy(), self.weight_plus.numpy(), self.weight_minus.numpy()


def zeros(numel: int) -> Float[Tensor, " d"]:
    """A sum of nothing, in float64; numpy asks for large pages where the system has them."""
    return torch.from_numpy(np.zeros(numel))


def empty(numel: int) -> Float[Tensor, " d"]:
    """Room for a merged delta, float32, in large pages likewise."""
    return torch.from_numpy(np.empty(numel, np.float32))


def blocks(total: Summands, numel: int) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """The sums of some coordinates at a time, small enough for the cache; those of another size come as they are."""
    for begin in range(0, numel, BLOCK):
        block = slice(begin, min(begin + BLOCK, numel))
        yield block, {name: sums[block] if sums.shape == (numel,) else sums for name, sums in total.items()}


def add_weighted(total: Float[Tensor, " d"], updates: Sequence[Update], coefficients: Sequence[float]) -> None:
    """Add coefficient * delta of every update to `total`, float64."""
    sums = total.numpy()
    dense = [(_array(u), c) for u, c in zip(updates, coefficients, strict=True) if not _is_ternary(u)]
    for begin in range(0, sums.size if dense else 0, BLOCK):
        block = slice(begin, begin + BLOCK)
        kernels.add_scaled([x[block] for x, _ in dense], [c for _, c in dense], sums[block])
    ternary = [(u.sent, c) for u, c in zip(updates, coefficients, strict=True) if isinstance(u.sent, TernaryDelta)]
    for some in _batches(ternary, _MANY):
        sent, values = zip(*some, strict=True)
        for part in side_by_side(sent):
            kernels.add_plane_values(*part.planes, part.edges, part.scales, _padded(values), sums[part.where])


def all_dense(updates: Sequence[Update]) -> bool:
    """Whether none is ternary."""
    return not any(map(_is_ternary, updates))


def mean_of_dense(updates: Sequence[Update], numel: int) -> Float[Tensor, " d"]:
    """The weighted mean of dense updates of one size, to the bits of their sum: none of it is held but a block."""
    merged, held = empty(numel), torch.zeros(min(BLOCK, numel), dtype=torch.float64)
    dense, weights = [_array(update) for update in updates], [update.weight for update in updates]
    whole = sum(weights)
    for begin in range(0, numel, BLOCK):
        block = slice(begin, min(begin + BLOCK, numel))
        sums = held[: block.stop - begin].zero_()
        kernels.add_scaled([x[block] for x in dense], weights, sums.numpy())
        merged[block] = sums.div_(whole)
    return merged


def add_by_sign(
    ballot: Ballot, updates: Sequence[Update], values: Sequence[float], votes: Sequence[float], trim: Trim | None = None
) -> None:
    """Add what is positive and what is negative of every update apart, and whose it is.

    Args:
        ballot: where to.
        updates: all of one size, that of the sums.
        values: what each delta is multiplied by.
        votes: what each counts for in a coordinate that it is not zero in.
        trim: which coordinates are taken as zero; None: none.
    """
    given = list(zip(updates, values, votes, strict=True))
    dense = [(_array(u), value, vote) for u, value, vote in given if not _is_ternary(u)]
    if dense:
        bounds = trim.bounds if trim else (0, ballot.plus.numel())
        for begin, end in pairwise(bounds):
            if end > begin:
                _add_range(ballot, dense, begin, end, trim)
    ternary = [(u.sent, value, vote) for u, value, vote in given if isinstance(u.sent, TernaryDelta)]
    for some in _batches(ternary, _MANY):
        sent, scaled, cast = zip(*some, strict=True)
        for part in side_by_side([trim.of_planes(delta) for delta in sent] if trim else sent):
            plus, minus, for_plus, for_minus = (total[part.where] for total in ballot.arrays)
            sums = (plus, minus, for_plus, for_minus)
            kernels.add_plane_votes(*part.planes, part.edges, part.scales, _padded(scaled), _padded(cast), sums)


def _add_range(
    ballot: Ballot, dense: Sequence[tuple[NDArray[np.float32], float, float]], begin: int, end: int, trim: Trim | None
) -> None:
    """A range that has one threshold for each update."""
    least = [float(trim.threshold(x[begin:end])) if trim else 0.0 for x, _, _ in dense]
    xs, values, votes = zip(*dense, strict=True)
    voters = kernels.voters(xs, least, values, votes)
    held = np.empty(4 * folding.BLOCK)
    rows = held.reshape(4, folding.BLOCK)
    for start in range(begin, end, folding.BLOCK):
        block = slice(start, min(start + folding.BLOCK, end))
        size = block.stop - block.start
        for row, total in zip(rows, ballot.arrays, strict=True):
            row[:size] = total[block]
        for four in voters:
            kernels.add_votes(four, block, held)
        for row, total in zip(rows, ballot.arrays, strict=True):
            total[block] = row[:size]


def gram(updates: Sequence[Update], ctx: Context) -> Float[Tensor, "n n"]:
    """Inner products of every two updates, float64: by counting bits where all are ternary, else by blocks.

    Memory: the updates as they were sent, each read once, and a block of 4 to 8 MiB.

    Raises:
        ValueError: an update has another size, or its weight is not positive and finite.
    """
    held = list(updates)
    products = np.zeros((len(held), len(held)))
    sent = [update.sent for update in held if isinstance(update.sent, TernaryDelta)]
    if held and len(sent) == len(held):
        for part in side_by_side(sent):
            mask, negative = (plane[: len(sent)] for plane in part.planes)
            scales = np.ascontiguousarray(part.scales[:, : len(sent)])
            kernels.add_plane_products(mask, negative, part.edges, scales, products)
        lower = torch.from_numpy(products)
        return lower + lower.tril(-1).T
    whole = torch.from_numpy(products)
    for _, block in columns(held, ctx):
        exact = block.double()
        whole.addmm_(exact, exact.T)
    return whole


def _is_ternary(update: Update) -> bool:
    return isinstance(update.sent, TernaryDelta)


def _array(update: Update) -> NDArray[np.float32]:
    return update.delta.numpy()  # type: ignore[no-any-return]


def _padded(numbers: Sequence[float]) -> NDArray[np.float64]:
    """With zeros for the rows of nobody."""
    out = np.zeros(-(-len(numbers) // turning.EIGHT) * turning.EIGHT)
    out[: len(numbers)] = numbers
    return out


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
