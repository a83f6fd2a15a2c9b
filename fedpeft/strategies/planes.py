"""Bit planes of many updates side by side, a block of coordinates at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.kernels import subsets, turning
from fedpeft.ternary import TernaryDelta

_BLOCK = subsets.WORDS * turning.LANES


@dataclass(frozen=True, eq=False)
class Part:
    """The planes of some updates over a block of coordinates; rows of nobody make them a multiple of eight.

    Args:
        where: the block.
        planes: masks and minus signs, uint64[8 m, WORDS] each; the next part is written over them.
        edges: int64[p + 1], from the block's begin: where pieces begin and end.
        scales: float64[p, 8 m]: of each piece and update.
    """

    where: slice
    planes: tuple[NDArray[np.uint64], NDArray[np.uint64]]
    edges: NDArray[np.int64]
    scales: NDArray[np.float64]


def side_by_side(sent: Sequence[TernaryDelta]) -> Iterator[Part]:
    """Blocks from the first coordinate to the last."""
    n, numel = len(sent), sent[0].numel
    bounds = _common(delta.bounds for delta in sent)
    scales = np.zeros((bounds.size - 1, -(-n // turning.EIGHT) * turning.EIGHT))
    for k, delta in enumerate(sent):
        scales[:, k] = _spread(delta, bounds)
    planes = [np.zeros((scales.shape[1], subsets.WORDS), np.uint64) for _ in range(2)]
    for begin in range(0, numel, _BLOCK):
        end = min(begin + _BLOCK, numel)
        words = slice(begin // turning.LANES, -(-end // turning.LANES))
        width = words.stop - words.start
        np.stack([delta.mask[words] for delta in sent], out=planes[0][:n, :width])
        np.stack([delta.negative[words] for delta in sent], out=planes[1][:n, :width])
        first, last = np.searchsorted(bounds, begin, "right") - 1, np.searchsorted(bounds, end, "left")
        edges = np.clip(bounds[first : last + 1], begin, end) - begin
        yield Part(slice(begin, end), (planes[0], planes[1]), edges, scales[first:last])


def _common(several: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Where any of them is cut."""
    found: list[NDArray[np.int64]] = []
    for bounds in several:
        if not any(np.array_equal(bounds, known) for known in found[-1:]):
            found.append(bounds)
    return np.unique(np.concatenate(found))


def _spread(delta: TernaryDelta, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scale of each of the smaller pieces that `bounds` cuts."""
    pieces = np.searchsorted(delta.bounds, bounds[:-1], "right") - 1
    return delta.scales[pieces].astype(np.float64)


@dataclass(frozen=True)
class Trim:
    """Keep the largest magnitudes of each range, and all that tie with the smallest of them.

    Args:
        density: fraction kept, in (0, 1]; at least one value.
        bounds: where ranges begin and end, rising.
    """

    density: float
    bounds: Sequence[int]

    def kept(self, numel: int) -> int:
        """How many of a range's values are kept."""
        return max(1, round(self.density * numel))

    def threshold(self, x: NDArray[np.float32]) -> np.float32:
        """The smallest magnitude kept of a range, which is not empty."""
        return kernels.magnitude_threshold(x, self.kept(x.size))

    def of_dense(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is left of a delta, and zeros elsewhere."""
        left = np.zeros_like(x)
        for begin, end in pairwise(self.bounds):
            if end > begin:
                part = x[begin:end]
                np.copyto(left[begin:end], part, where=np.abs(part) >= self.threshold(part))
        return left

    def of_planes(self, delta: TernaryDelta) -> TernaryDelta:
        """What is left of a ternary delta: the pieces whose scale reaches their range's threshold."""
        cuts = np.unique(np.concatenate([delta.bounds, np.asarray(self.bounds, np.int64)]))
        scales = _spread(delta, cuts)
        sizes, left = np.abs(scales), scales.astype(np.float32)
        counts: NDArray[np.int64] | None = None
        for begin, end in pairwise(self.bounds):
            first, last = np.searchsorted(cuts, (begin, end))
            some = sizes[first:last]
            if some.size and (some != some[0]).any():
                counts = kernels.plane_counts(delta.mask, cuts) if counts is None else counts
                order = np.argsort(-some, kind="stable")
                reached = np.searchsorted(np.cumsum(counts[first:last][order]), self.kept(end - begin))
                left[first:last][some < (some[order][reached] if reached < some.size else 0.0)] = 0
        return delta if counts is None else replace(delta, bounds=cuts, scales=left)


def mean_magnitudes(delta: TernaryDelta, bounds: Sequence[int]) -> NDArray[np.float64]:
    """Of each range the mean magnitude of what is not zero; 0 where all is."""
    ranges = np.asarray(bounds, np.int64)
    cuts = np.unique(np.concatenate([delta.bounds, ranges]))
    sizes = np.abs(_spread(delta, cuts))
    counts = np.where(sizes > 0, kernels.plane_counts(delta.mask, cuts), 0)
    owners = np.searchsorted(ranges, cuts[:-1], "right") - 1
    sums, kept = (np.bincount(owners, numbers, ranges.size - 1) for numbers in (sizes * counts, counts))
    return sums / np.maximum(kept, 1)
