"""Levels times the scale of a block: the nearest to each coordinate, and back."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.blocks import checked_blocks
from fedpeft.kernels.jit import kernel, vector

NEAR = 64


@kernel
def _nearest(
    x: NDArray[np.float32],
    edges: NDArray[np.int64],
    middles: NDArray[np.float32],
    scales: NDArray[np.float32],
    zero: int,
    codes: NDArray[np.uint8],
) -> None:
    """Count the middles below, for 64 coordinates at once, which is compiled to vector instructions."""
    passed = np.empty(NEAR, np.int32)
    for k in range(scales.size):
        scale = scales[k]
        for begin in range(edges[k], edges[k + 1], NEAR):
            near = x[begin : min(begin + NEAR, edges[k + 1])]
            passed[:] = np.int32(0 if scale > 0 else zero)
            if scale > 0:
                for middle in middles:
                    threshold = middle * scale
                    for i in range(near.size):
                        passed[i] += np.int32(near[i] > threshold)
            for i in range(near.size):
                codes[begin + i] = np.uint8(passed[i])


@kernel
def _look_up(
    codes: NDArray[np.uint8],
    edges: NDArray[np.int64],
    points: NDArray[np.float32],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    for k in range(scales.size):
        scale = scales[k]
        code, block = codes[edges[k] : edges[k + 1]], out[edges[k] : edges[k + 1]]
        for i in range(code.size):
            block[i] = points[code[i]] * scale


def nearest_levels(
    x: NDArray[np.float32], edges: NDArray[np.int64], levels: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Give uint8[n]: which of the levels times its block's scale lies nearest, the lower of two.

    Args:
        x: float32[n], finite.
        edges: int64[m + 1], rising from 0 to n.
        levels: float32[l], rising, at most 256, with a zero among them, which a block of scale 0 gets.
        scales: float32[m], 0 or positive.
    """
    x, scales = vector(x, np.float32, "x"), vector(scales, np.float32, "scales")
    edges = checked_blocks(edges, x.size, scales.size)
    levels = vector(levels, np.float32, "levels")
    middles = ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)
    codes = np.empty(x.size, np.uint8)
    _nearest(x, edges, middles, scales, int(np.flatnonzero(levels == 0)[0]), codes)
    return codes


def look_up(
    codes: NDArray[np.uint8], edges: NDArray[np.int64], points: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Give float32[n]: points[code] times its block's scale.

    Raises:
        ValueError: a code has no point, or the numbers do not fit each other.
    """
    codes, scales = vector(codes, np.uint8, "codes"), vector(scales, np.float32, "scales")
    edges = checked_blocks(edges, codes.size, scales.size)
    if int(codes.max(initial=0)) >= points.size:
        raise ValueError(f"codes: expected below {points.size}, got {codes.max()}")
    table = np.zeros(256, np.float32)
    table[: points.size] = points
    out = np.empty(codes.size, np.float32)
    _look_up(codes, edges, table, scales, out)
    return out
