"""Ternary vectors as two bit planes: a mask over coordinates and dense signs over what the mask keeps."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import planes
from fedpeft.kernels.jit import vector, writable


def _slots(
    bounds: NDArray[np.int64], values: NDArray[np.float32], name: str, n: int
) -> tuple[list[int], NDArray[np.float32]]:
    """Check that `bounds` cuts [0, n) into slots and that `values` has one entry for each."""
    edges: list[int] = vector(bounds, np.int64, "bounds").tolist()
    if not edges or edges[0] != 0 or edges[-1] != n or any(a > b for a, b in pairwise(edges)):
        raise ValueError(f"bounds: expected to rise from 0 to {n}, got {edges[:3]}...{edges[-1:]}")
    values = vector(values, np.float32, name)
    if values.size != len(edges) - 1:
        raise ValueError(f"{name}: expected one for each of {len(edges) - 1} slots, got {values.size}")
    return edges, values


def pack_ternary(
    x: NDArray[np.float32], bounds: NDArray[np.int64], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Keep the signs of coordinates with |x| >= threshold and x != 0, and measure what was kept.

    Args:
        x: float32[n]; slot j is `x[bounds[j]:bounds[j + 1]]`.
        bounds: int64[m + 1], rising from 0 to n.
        thresholds: float32[m], each >= 0.

    Returns:
        mask uint8[ceil(n / 8)] (bit i & 7 of byte i >> 3), signs uint8[ceil(kept / 8)] (1 = negative, in order
        of position), and for each slot: kept int64[m], sum of kept |x| float64[m], sum of all x^2 float64[m].
    """
    x = vector(x, np.float32, "x")
    edges, thresholds = _slots(bounds, thresholds, "thresholds", x.size)
    if not np.all(thresholds >= 0):
        raise ValueError(f"thresholds: expected numbers >= 0, got {thresholds}")
    wide = np.zeros((2, (x.size + 63) // 64), np.uint64)
    kept = np.empty(thresholds.size, np.int64)
    sums = np.empty((2, thresholds.size), np.float64)
    least = np.maximum(thresholds.view(np.uint32) & planes.MAGNITUDE, 1)
    planes.classify(x, np.array(edges), least, wide[0], wide[1], kept, sums)
    mask, negative = wide.view(np.uint8)[:, : (x.size + 7) // 8]
    signs = np.empty(int(kept.sum()) // 8 + 1, np.uint8)
    planes.squeeze_signs(mask, negative, planes.ONES, planes.SQUEEZE, signs)
    return mask, signs[: (int(kept.sum()) + 7) // 8], kept, sums[0], sums[1]


def align_planes(
    mask: NDArray[np.uint8], signs: NDArray[np.uint8], n: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give both planes as words, with one bit for each of `n` coordinates.

    Raises:
        PayloadError: they do not fit each other or `n`.
    """
    mask, signs = vector(mask, np.uint8, "mask"), vector(signs, np.uint8, "signs")
    if mask.size != (n + 7) // 8:
        raise PayloadError(Defect.SIZE, f"mask: expected {(n + 7) // 8} bytes, got {mask.size}")
    if n & 7 and mask[-1] >> (n & 7):
        raise PayloadError(Defect.PADDING, f"mask: expected zeros after bit {n}")
    kept = planes.popcount(mask)
    if signs.size != (kept + 7) // 8:
        raise PayloadError(Defect.COUNT, f"signs: expected {(kept + 7) // 8} bytes for {kept} signs, got {signs.size}")
    if kept & 7 and signs[-1] >> (kept & 7):
        raise PayloadError(Defect.PADDING, f"signs: expected zeros after bit {kept}")
    padded = np.zeros(signs.size + 2, np.uint8)
    padded[: signs.size] = signs
    wide = np.zeros((2, (n + 63) // 64), np.uint64)
    copied, negative = wide.view(np.uint8)[:, : mask.size]
    copied[:] = mask
    planes.spread_signs(mask, padded, planes.ONES, planes.SPREAD, negative)
    return wide[0], wide[1]


def unpack_ternary(
    mask: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write +scale or -scale of its slot to each kept coordinate of `out` float32[n], and 0 to the others.

    Raises:
        PayloadError: the planes do not fit each other or `out`.
    """
    write_planes(*align_planes(mask, signs, out.size), bounds, scales, out)


def write_planes(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Do the same from planes that `align_planes` made."""
    edges, scales = _slots(bounds, scales, "scales", out.size)
    writable(out, np.float32, "out")
    planes.write(mask, negative, np.array(edges), scales.view(np.uint32), out.view(np.uint32))


def add_ternary(
    mask: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    scales: NDArray[np.float32],
    weight: float,
    total: NDArray[np.float64],
) -> None:
    """Add weight * (what `unpack_ternary` writes) to `total` float64[n] without writing it.

    Raises:
        PayloadError: the planes do not fit each other or `total`.
    """
    edges, scales = _slots(bounds, scales, "scales", total.size)
    writable(total, np.float64, "total")
    wide, negative = align_planes(mask, signs, total.size)
    planes.add(wide, negative, np.array(edges), scales.astype(np.float64) * float(weight), total)
