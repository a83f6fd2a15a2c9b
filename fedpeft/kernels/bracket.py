"""Exact selection among many magnitudes: a sample says between which two the one that is sought will be found."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import bits_set, kernel, trailing_zeros

MAGNITUDE = np.uint32(0x7FFFFFFF)
SAMPLE = 2048
DEVIATIONS = 4.0
COARSE = np.uint32(19)
BINS = 4096
DIGIT = 10


@kernel
def _likely(bits: NDArray[np.uint32], k: int) -> tuple[np.uint32, np.uint32]:
    """Give magnitudes below and above the k-th largest, if evenly spaced ones are like the rest."""
    step = bits.size // SAMPLE
    histogram = np.zeros(BINS, np.int64)
    for i in range(SAMPLE):
        histogram[(bits[i * step] & MAGNITUDE) >> COARSE] += 1
    share = k / bits.size
    rank, slack = share * SAMPLE, 1 + DEVIATIONS * np.sqrt(SAMPLE * share * (1 - share))
    low, high = 0, BINS - 1
    above = 0
    for b in range(BINS - 1, -1, -1):
        above += histogram[b]
        if above < rank - slack:
            high = b - 1
        if above >= rank + slack:
            low = b
            break
    return np.uint32(low << 19), np.uint32(((high + 1) << 19) - 1)


@kernel
def _take(bits: NDArray[np.uint32], low: np.uint32, high: np.uint32, out: NDArray[np.uint32]) -> tuple[int, int]:
    """Write the magnitudes from low to high, less low; give how many lie above, and how many are written."""
    above, count = np.uint64(0), 0
    width = high - low
    for w in range(bits.size >> 6):
        found, over = np.uint64(0), np.uint64(0)
        for lane in range(64):
            magnitude = bits[64 * w + lane] & MAGNITUDE
            found |= np.uint64(np.uint32(magnitude - low) <= width) << np.uint64(lane)
            over |= np.uint64(magnitude > high) << np.uint64(lane)
        above += bits_set(over)
        while found != 0:
            out[count] = (bits[np.uint64(w << 6) + trailing_zeros(found)] & MAGNITUDE) - low
            count += 1
            found &= found - np.uint64(1)
    for i in range(bits.size & ~63, bits.size):
        magnitude = bits[i] & MAGNITUDE
        above += np.uint64(magnitude > high)
        if np.uint32(magnitude - low) <= width:
            out[count] = magnitude - low
            count += 1
    return np.int64(above), count  # type: ignore[return-value]


@kernel
def _select(numbers: NDArray[np.uint32], rank: int, most: np.uint32) -> np.uint32:
    """The rank-th largest, from 1, of numbers of at most `most`, digit by digit; it moves them about."""
    width = 0
    while most >> np.uint32(width):
        width += 1
    count, prefix = numbers.size, np.uint32(0)
    histogram = np.empty(1 << DIGIT, np.int64)
    while width > 0:
        shift = np.uint32(max(0, width - DIGIT))
        histogram[:] = 0
        for i in range(count):
            histogram[(numbers[i] - prefix) >> shift] += 1
        digit = (1 << DIGIT) - 1
        while rank > histogram[digit]:
            rank -= int(histogram[digit])
            digit -= 1
        left = 0
        for i in range(count):
            number = numbers[i]
            numbers[left] = number
            left += int((number - prefix) >> shift == digit)
        prefix += np.uint32(digit) << shift
        count, width = left, int(shift)
    return prefix


@kernel
def kth_by_sample(bits: NDArray[np.uint32], k: int) -> tuple[bool, np.uint32]:
    """Whether the sample led to the k-th largest magnitude, and it; `bits` has at least SAMPLE entries.

    It reads all of `bits` once in vector instructions, and then a few of a hundred.
    """
    low, high = _likely(bits, k)
    numbers = np.empty(bits.size, np.uint32)
    above, within = _take(bits, low, high, numbers)
    if not above < k <= above + within:
        return False, np.uint32(0)
    return True, low + _select(numbers[:within], k - above, high - low)
