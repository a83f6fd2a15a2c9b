"""Directions of random signs that are never written down as numbers: products with them, straight from their bits."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector, writable

TILE = 64  # words, so that the numbers that they sign stay in the first cache
ONE = np.uint32(1)


@kernel
def _dots(x: NDArray[np.float32], words: NDArray[np.uint32], width: int, out: NDArray[np.float64]) -> None:
    """Lanes add up in float32 over a tile, and tiles in float64; `x` has 32 * width numbers."""
    lanes = np.empty(32, np.float32)
    for p in range(out.size):
        total = 0.0
        for tile in range(0, width, TILE):
            lanes[:] = 0
            for w in range(tile, min(tile + TILE, width)):
                word = words[p * width + w]
                for lane in range(np.uint64(32)):
                    value = x[np.uint64(32 * w) + lane]
                    lanes[lane] += -value if (word >> np.uint32(lane)) & ONE else value
            for lane in range(32):
                total += np.float64(lanes[lane])
        out[p] = total


@kernel
def _combine(c: NDArray[np.float64], words: NDArray[np.uint32], width: int, out: NDArray[np.float32]) -> None:
    sums = np.empty(32 * TILE, np.float64)
    for tile in range(0, width, TILE):
        end = min(tile + TILE, width)
        sums[:] = 0
        for p in range(c.size):
            value = c[p]
            for w in range(tile, end):
                word = words[p * width + w]
                for lane in range(np.uint64(32)):
                    sums[np.uint64(32 * (w - tile)) + lane] += -value if (word >> np.uint32(lane)) & ONE else value
        for i in range(32 * tile, min(32 * end, out.size)):
            out[i] += np.float32(sums[i - 32 * tile])


def signed_sums(x: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Sums of `x` under directions of +1 and -1: float64[k] from float32[n].

    Args:
        x: float32[n].
        words: uint32[k * ceil(n / 32)]; direction p negates x[i] where bit i % 32 of its word i // 32 is set.

    >>> signed_sums(np.array([1, 2, 4], np.float32), np.array([0, 0b110], np.uint32)).tolist()
    [7.0, -5.0]
    """
    x = vector(x, np.float32, "x")
    words, width = _directions(words, x.size)
    if x.size % 32:
        x = np.concatenate([x, np.zeros(-x.size % 32, np.float32)])
    out = np.empty(words.size // width, np.float64)
    _dots(x, words, width, out)
    return out


def add_signed(c: NDArray[np.float64], words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    """Add to `out` float32[n] the directions of `signed_sums`, each times its number of `c` float64[k]."""
    writable(out, np.float32, "out")
    c = vector(c, np.float64, "c")
    words, width = _directions(words, out.size)
    if words.size != c.size * width:
        raise ValueError(f"c: expected one number for each of {words.size // width} directions, got {c.size}")
    _combine(c, words, width, out)


def _directions(words: NDArray[np.uint32], n: int) -> tuple[NDArray[np.uint32], int]:
    words, width = vector(words, np.uint32, "words"), -(-n // 32)
    if not width or words.size % width:
        raise ValueError(f"words: expected directions of {width} words for {n} numbers, got {words.size} words")
    return words, width
