"""Philox4x32-10, a counter-based generator: word i of a stream is a pure function of (key, counter)."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = np.uint64(0x9E3779B9)
WEYL_1 = np.uint64(0xBB67AE85)


@kernel
def _blocks(
    key0: np.uint64,
    key1: np.uint64,
    c1: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    first: int,
    out: NDArray[np.uint32],
) -> None:
    """Fill `out` with the blocks of counters (first, c1, c2, c3), (first + 1, c1, c2, c3), ..."""
    for block in range(out.size // 4):
        x0, x1, x2, x3 = np.uint64(first + block), c1, c2, c3
        k0, k1 = key0, key1
        for _ in range(10):
            p0 = MULTIPLIER_0 * x0
            p1 = MULTIPLIER_1 * x2
            x0, x1, x2, x3 = (p1 >> HALF) ^ x1 ^ k0, p1 & LOW, (p0 >> HALF) ^ x3 ^ k1, p0 & LOW
            k0 = (k0 + WEYL_0) & LOW
            k1 = (k1 + WEYL_1) & LOW
        out[4 * block] = x0
        out[4 * block + 1] = x1
        out[4 * block + 2] = x2
        out[4 * block + 3] = x3


def _word(value: int, name: str) -> np.uint64:
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{name}: expected 0 <= {name} < 2**32, got {value}")
    return np.uint64(value)


def philox_words(key0: int, key1: int, c1: int, c2: int, c3: int, start: int, n: int) -> NDArray[np.uint32]:
    """Give words [start, start + n) of a stream: word i is lane i % 4 of counter (i // 4, c1, c2, c3).

    Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    The key and the counter are 32-bit words; start and n count words, and start + n <= 2**34.
    """
    if start < 0 or n < 0 or start + n > 1 << 34:
        raise ValueError(f"start, n: expected 0 <= start <= start + n <= 2**34, got {start}, {n}")
    words = _word(key0, "key0"), _word(key1, "key1"), _word(c1, "c1"), _word(c2, "c2"), _word(c3, "c3")
    first, skip = divmod(int(start), 4)
    out = np.empty((skip + n + 3) // 4 * 4, np.uint32)
    _blocks(*words, first, out)
    return out[skip : skip + n]


def philox_block(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Give uint32[4] for one counter uint32[4] and key uint32[2], as Random123's `philox4x32_R(10, ...)` does.

    >>> [f"{w:08x}" for w in philox_block(np.zeros(4, np.uint32), np.zeros(2, np.uint32))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = (int(w) for w in counter)
    return philox_words(int(key[0]), int(key[1]), c1, c2, c3, 4 * c0, 4)
