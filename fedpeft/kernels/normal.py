"""Quantising what is nearly normal."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.hadamard import checked_edges
from fedpeft.kernels.jit import kernel, vector

LANES = 64


@kernel
def _by_sign(z: NDArray[np.float32], level: np.float64, codes: NDArray[np.uint8], sums: NDArray[np.float64]) -> None:
    """A block of one level, in one pass."""
    squares, magnitudes, whole = np.zeros(LANES), np.zeros(LANES), z.size & ~(LANES - 1)
    for at in range(0, whole, LANES):
        for lane in range(np.uint64(LANES)):
            j = np.uint64(at) + lane
            value = np.float64(z[j])
            squares[lane] += value * value
            magnitudes[lane] += abs(value)
            codes[j] = np.uint8(z[j] >= 0)
    for i in range(whole, z.size):
        value = np.float64(z[i])
        squares[i - whole] += value * value
        magnitudes[i - whole] += abs(value)
        codes[i] = np.uint8(z[i] >= 0)
    sums[0], sums[1], sums[2] = squares.sum(), level * magnitudes.sum(), level * level * z.size


@kernel
def quantise_block(
    z: NDArray[np.float32],
    middles: NDArray[np.float32],
    levels: NDArray[np.float32],
    codes: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> None:
    """Inside a kernel: the codes of a block, and its three sums.

    Its loops of 64 are compiled to vector instructions; a lane for each position fixes the order of the sums. A level
    replaces the one below it, again and again, since to look it up is no vector instruction.
    """
    if levels.size == 1:
        _by_sign(z, np.float64(levels[0]), codes, sums)
        return
    half, whole = np.uint8(levels.size), z.size & ~(LANES - 1)
    squares, inner, quantised = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    for at in range(0, whole, LANES):
        for lane in range(np.uint64(LANES)):
            value = np.float64(z[np.uint64(at) + lane])
            squares[lane] += value * value
    for i in range(whole, z.size):
        squares[i - whole] += np.float64(z[i]) * np.float64(z[i])
    sums[0] = squares.sum()
    deviation = np.float32(np.sqrt(sums[0] / z.size))
    limits = middles * deviation
    magnitude, level, nearest = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.uint8)
    for at in range(0, whole, LANES):
        for lane in range(np.uint64(LANES)):
            magnitude[lane], level[lane], nearest[lane] = abs(z[np.uint64(at) + lane]), levels[0], 0
        for m in range(limits.size):
            limit, upper, place = limits[m], levels[m + 1], np.uint8(m + 1)
            for lane in range(np.uint64(LANES)):
                beyond = magnitude[lane] > limit
                level[lane] = upper if beyond else level[lane]
                nearest[lane] = place if beyond else nearest[lane]
        for lane in range(np.uint64(LANES)):
            j, value = np.uint64(at) + lane, np.float64(level[lane])
            codes[j] = half + nearest[lane] if z[j] >= 0 else half - np.uint8(1) - nearest[lane]
            inner[lane] += value * np.float64(magnitude[lane])
            quantised[lane] += value * value
    for i in range(whole, z.size):
        c = 0
        for limit in limits:
            c += abs(z[i]) > limit
        codes[i], value = half + c if z[i] >= 0 else half - 1 - c, np.float64(levels[c])
        inner[i - whole] += value * np.float64(abs(z[i]))
        quantised[i - whole] += value * value
    sums[1], sums[2] = inner.sum(), quantised.sum()


@kernel
def _quantise(
    z: NDArray[np.float32],
    edges: NDArray[np.int64],
    middles: NDArray[np.float32],
    levels: NDArray[np.float32],
    codes: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> None:
    for k in range(edges.size - 1):
        begin, end = edges[k], edges[k + 1]
        quantise_block(z[begin:end], middles, levels, codes[begin:end], sums[k])


def between(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where a magnitude is as near to one level as to the next, in root mean squares."""
    middles: NDArray[np.float32] = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    return middles


def quantise_normal(
    z: NDArray[np.float32], edges: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Nearest of +-levels times each block's root mean square.

    Args:
        z: float32[n].
        edges: as in `walsh_hadamard`.
        levels: float32[h], positive and rising.

    Returns:
        codes uint8[n] in [0, 2h): h + c stands for levels[c], h - 1 - c for its negative; and for each block the sums
        float64[3, m] of z^2, of the level times |z|, and of the level squared.
    """
    z, levels = vector(z, np.float32, "z"), vector(levels, np.float32, "levels")
    edges = checked_edges(edges, z.size)
    codes, sums = np.empty(z.size, np.uint8), np.empty((edges.size - 1, 3), np.float64)
    _quantise(z, edges, between(levels), levels, codes, sums)
    return codes, np.ascontiguousarray(sums.T)
