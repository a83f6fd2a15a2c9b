"""Quantising what is nearly normal."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.hadamard import checked_edges
from fedpeft.kernels.jit import inlined, kernel, vector

LANES = 64
MOST = 8  # levels; fewer are filled up with steps that no number takes
Steps: TypeAlias = tuple[tuple[np.float32, ...], tuple[np.float32, ...]]


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


@inlined
def _nearest(magnitude: np.float32, deviation: np.float32, steps: Steps) -> tuple[np.float32, np.uint8]:
    """The level of a number and its place; one replaces the other, since to look it up is no vector instruction."""
    middles, levels = steps
    level, place = levels[0], np.uint8(0)
    for k in range(MOST - 1):
        beyond = magnitude > middles[k] * deviation
        level = levels[k + 1] if beyond else level
        place = np.uint8(k + 1) if beyond else place
    return level, place


@kernel
def quantise_block(
    z: NDArray[np.float32], count: int, steps: Steps, codes: NDArray[np.uint8], sums: NDArray[np.float64]
) -> None:
    """Inside a kernel: the codes of a block, of `count` levels, and its three sums.

    Its loops of 64 are compiled to vector instructions, those of float32 apart from those of float64, which hold half
    as many; a lane for each position fixes the order of the sums.
    """
    if count == 1:
        _by_sign(z, np.float64(steps[1][0]), codes, sums)
        return
    half, whole = np.uint8(count), z.size & ~(LANES - 1)
    squares, inner, quantised = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    for at in range(0, whole, LANES):
        for lane in range(np.uint64(LANES)):
            value = np.float64(z[np.uint64(at) + lane])
            squares[lane] += value * value
    for i in range(whole, z.size):
        squares[i - whole] += np.float64(z[i]) * np.float64(z[i])
    sums[0] = squares.sum()
    deviation, near = np.float32(np.sqrt(sums[0] / z.size)), np.empty(LANES, np.float32)
    for at in range(0, whole, LANES):
        for lane in range(np.uint64(LANES)):
            j = np.uint64(at) + lane
            level, place = _nearest(abs(z[j]), deviation, steps)
            codes[j], near[lane] = half + place if z[j] >= 0 else half - np.uint8(1) - place, level
        for lane in range(np.uint64(LANES)):
            value = np.float64(near[lane])
            inner[lane] += value * np.float64(abs(z[np.uint64(at) + lane]))
            quantised[lane] += value * value
    for i in range(whole, z.size):
        level, place = _nearest(abs(z[i]), deviation, steps)
        codes[i], value = half + place if z[i] >= 0 else half - np.uint8(1) - place, np.float64(level)
        inner[i - whole] += value * np.float64(abs(z[i]))
        quantised[i - whole] += value * value
    sums[1], sums[2] = inner.sum(), quantised.sum()


@kernel
def _quantise(
    z: NDArray[np.float32],
    edges: NDArray[np.int64],
    count: int,
    steps: Steps,
    codes: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> None:
    for k in range(edges.size - 1):
        begin, end = edges[k], edges[k + 1]
        quantise_block(z[begin:end], count, steps, codes[begin:end], sums[k])


def steps_of(levels: NDArray[np.float32]) -> Steps:
    """Levels, and the middles between them, where a magnitude is as near to one as to the next, in root mean squares.

    Raises:
        ValueError: there are none, or too many.
    """
    if not 1 <= levels.size <= MOST:
        raise ValueError(f"levels: expected 1 to {MOST}, got {levels.size}")
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    beyond = MOST - levels.size
    return (*middles, *[np.float32(np.inf)] * beyond), (*levels, *[levels[-1]] * beyond)


def quantise_normal(
    z: NDArray[np.float32], edges: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Nearest of +-levels times each block's root mean square.

    Args:
        z: float32[n].
        edges: as in `walsh_hadamard`.
        levels: float32[h], positive and rising, at most 8.

    Returns:
        codes uint8[n] in [0, 2h): h + c stands for levels[c], h - 1 - c for its negative; and for each block the sums
        float64[3, m] of z^2, of the level times |z|, and of the level squared.
    """
    z, levels = vector(z, np.float32, "z"), vector(levels, np.float32, "levels")
    edges = checked_edges(edges, z.size)
    codes, sums = np.empty(z.size, np.uint8), np.empty((edges.size - 1, 3), np.float64)
    _quantise(z, edges, levels.size, steps_of(levels), codes, sums)
    return codes, np.ascontiguousarray(sums.T)
