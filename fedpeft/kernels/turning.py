"""Bits of eight planes, turned so that the eight bits of one coordinate are a byte."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import inlined, kernel

EIGHT = 8
CHUNK = 8
LANES = 64
ZERO, FULL = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)
BITS_7, BITS_14, BITS_28 = np.uint64(0x00AA00AA00AA00AA), np.uint64(0x0000CCCC0000CCCC), np.uint64(0x00000000F0F0F0F0)
SEVEN, FOURTEEN, TWENTY_EIGHT = np.uint64(7), np.uint64(14), np.uint64(28)
HALF, QUARTER, EIGHTH = np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF)


@inlined
def _exchange(words: NDArray[np.uint64], low: int, apart: int, shift: int, mask: np.uint64) -> None:
    """Swap the bytes of one row that the mask leaves with those of another row that it takes, in all columns."""
    for w in range(CHUNK):
        a, b = words[low * CHUNK + w], words[(low + apart) * CHUNK + w]
        both = ((a >> np.uint64(shift)) ^ b) & mask
        words[low * CHUNK + w] = a ^ (both << np.uint64(shift))
        words[(low + apart) * CHUNK + w] = b ^ both


@kernel
def turn(words: NDArray[np.uint64]) -> None:
    """Turn rows of bits in place: row k of words[8, CHUNK] has vector k's bits before, 64 to a word.

    Afterwards byte j of words[b, w] has the bits of all eight vectors at coordinate 8 b + j of word w.
    """
    for k in range(4):
        _exchange(words, k, 4, 32, HALF)
    for k in range(2):
        _exchange(words, k, 2, 16, QUARTER)
        _exchange(words, k + 4, 2, 16, QUARTER)
    for k in range(0, EIGHT, 2):
        _exchange(words, k, 1, 8, EIGHTH)
    for i in range(EIGHT * CHUNK):
        x = words[i]
        t = (x ^ (x >> SEVEN)) & BITS_7
        x ^= t ^ (t << SEVEN)
        t = (x ^ (x >> FOURTEEN)) & BITS_14
        x ^= t ^ (t << FOURTEEN)
        t = (x ^ (x >> TWENTY_EIGHT)) & BITS_28
        words[i] = x ^ t ^ (t << TWENTY_EIGHT)


@kernel
def within(start: int, stop: int, at: int) -> np.uint64:
    """The bits of coordinates `at` to `at + 63` that lie from start to stop."""
    bits = FULL
    if start > at:
        bits = bits << np.uint64(min(start - at, 63)) if start - at < LANES else ZERO
    if stop < at + LANES:
        bits = bits & (FULL >> np.uint64(at + LANES - stop)) if stop > at else ZERO
    return bits
