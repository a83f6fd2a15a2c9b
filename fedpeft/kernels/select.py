"""Exact selection of the k-th largest magnitude, by radix on the bits of IEEE floats."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels import bracket
from fedpeft.kernels.jit import kernel, trailing_zeros, vector

MAGNITUDE = np.uint32(0x7FFFFFFF)
EXPONENT = np.uint32(0x7F800000)
MANY = 8 * bracket.SAMPLE


@kernel
def _bin_of_rank(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Find the bin that holds the `rank`-th largest entry (from 1), and that entry's rank inside the bin."""
    for b in range(histogram.size - 1, 0, -1):
        if rank <= histogram[b]:
            return b, rank
        rank -= histogram[b]
    return 0, rank


@kernel
def kth_magnitude(bits: NDArray[np.uint32], k: int) -> np.uint32:
    """Select in three digits of 12, 10 and 9 bits; only the first digit reads all of `bits`."""
    n = bits.size
    # Four histograms in turn: neighbours of one magnitude would else wait for each other's store.
    h0 = np.zeros(4096, np.uint32)
    h1 = np.zeros(4096, np.uint32)
    h2 = np.zeros(4096, np.uint32)
    h3 = np.zeros(4096, np.uint32)
    for i in range(0, n - 3, 4):
        h0[(bits[i] & MAGNITUDE) >> np.uint32(19)] += 1
        h1[(bits[i + 1] & MAGNITUDE) >> np.uint32(19)] += 1
        h2[(bits[i + 2] & MAGNITUDE) >> np.uint32(19)] += 1
        h3[(bits[i + 3] & MAGNITUDE) >> np.uint32(19)] += 1
    for i in range(n & ~3, n):
        h0[(bits[i] & MAGNITUDE) >> np.uint32(19)] += 1
    high = np.empty(4096, np.int64)
    for b in range(4096):
        high[b] = np.int64(h0[b]) + h1[b] + h2[b] + h3[b]
    top, rank = _bin_of_rank(high, k)

    candidates = np.empty(high[top], np.uint32)
    count = 0
    for w in range(n >> 6):
        found = np.uint64(0)
        for lane in range(64):
            found |= np.uint64(((bits[64 * w + lane] & MAGNITUDE) >> np.uint32(19)) == top) << np.uint64(lane)
        while found != 0:
            candidates[count] = bits[np.uint64(w << 6) + trailing_zeros(found)] & MAGNITUDE
            count += 1
            found &= found - np.uint64(1)
    for i in range(n & ~63, n):
        if (bits[i] & MAGNITUDE) >> np.uint32(19) == top:
            candidates[count] = bits[i] & MAGNITUDE
            count += 1
    middle = np.zeros(1024, np.int64)
    for i in range(count):
        middle[(candidates[i] >> np.uint32(9)) & np.uint32(1023)] += 1
    digit, rank = _bin_of_rank(middle, rank)
    prefix = (top << 10) | digit
    low = np.zeros(512, np.int64)
    for i in range(count):
        low[candidates[i] & np.uint32(511)] += (candidates[i] >> np.uint32(9)) == prefix
    digit, rank = _bin_of_rank(low, rank)
    return np.uint32((prefix << 9) | digit)


@kernel
def _all_finite(bits: NDArray[np.uint32]) -> bool:
    bad = False
    for i in range(bits.size):
        bad |= (bits[i] & EXPONENT) == EXPONENT
    return not bad


def magnitude_threshold(x: NDArray[np.float32], k: int) -> np.float32:
    """Give the k-th largest |x|, exactly; at least k coordinates have |x| >= it (ties).

    Args:
        x: float32[n], finite.
        k: 1 <= k <= n.

    >>> magnitude_threshold(np.array([1, -3, 2, 0], np.float32), 2)
    np.float32(2.0)
    """
    if not 1 <= k <= x.size:
        raise ValueError(f"k: expected 1 <= k <= {x.size}, got {k}")
    bits = vector(x, np.float32, "x").view(np.uint32)
    found, kth = bracket.kth_by_sample(bits, int(k)) if x.size >= MANY else (False, 0)
    return np.float32(np.uint32(kth if found else kth_magnitude(bits, int(k))).view(np.float32))


def all_finite(x: NDArray[np.float32]) -> bool:
    """Whether no coordinate of float32[n] is infinite or NaN."""
    return bool(_all_finite(vector(x, np.float32, "x").view(np.uint32)))
