"""The step at which rounded magnitudes have a given entropy, found on one histogram of them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.blocks import checked_blocks
from fedpeft.kernels.jit import kernel, vector

# From this share of a step below a multiple on, a magnitude is rounded to it: zero's interval is 1.1 steps wide. For
# normal and Laplacian numbers at 0.5 to 6 bits no other width has an error that is lower by 1 %.
ZONE = 0.55
# A bin is a float's exponent and the first 7 bits of its mantissa, 0.8 % wide at most: 2^-14 to 2^16 units.
SHIFT = np.int32(16)
LOWEST = np.int32((127 - 14) << 7)
BINS = 30 << 7
LAST = np.int32(BINS - 1)
NEAR = 64
HALVINGS, SECTIONS = 22, 24
CLAMPED = 1 / 64  # of the step at which no magnitude is clamped: the least that is tried
GOLDEN = (5.0**0.5 - 1) / 2


@kernel
def _histogram(
    x: NDArray[np.float32], edges: NDArray[np.int64], inverse: NDArray[np.float64], counts: NDArray[np.int64]
) -> np.float32:
    """Count |x| / unit and give the largest; into four tables, so that no count waits for the one before."""
    tables = np.zeros(4 * BINS, np.uint32)
    near = np.zeros(NEAR, np.float32)
    bits, largest = near.view(np.int32), np.int32(0)
    place = np.empty(NEAR, np.int32)
    for j in range(inverse.size):
        for begin in range(edges[j], edges[j + 1], NEAR):
            block = x[begin : min(begin + NEAR, edges[j + 1])]
            for i in range(block.size):
                near[i] = np.float32(abs(np.float64(block[i])) * inverse[j])
            for i in range(block.size):
                largest = max(largest, bits[i])
                place[i] = min(max((bits[i] >> SHIFT) - LOWEST, np.int32(0)), LAST) + np.int32(i & 3) * np.int32(BINS)
            for i in range(block.size):
                tables[place[i]] += np.uint32(1)
    for b in range(BINS):
        counts[b] = np.int64(tables[b]) + tables[BINS + b] + tables[2 * BINS + b] + tables[3 * BINS + b]
    bits[0] = largest
    largest_of_all: np.float32 = near[0]
    return largest_of_all


@kernel
def _below(
    t: float, lower: NDArray[np.float64], sums: NDArray[np.float64], moments: NDArray[np.float64]
) -> tuple[float, float]:
    """How many magnitudes lie below t and their sum; those of t's bin are taken to be spread evenly in it."""
    one = np.empty(1, np.float32)
    one[0] = t
    b = min(max((one.view(np.int32)[0] >> SHIFT) - LOWEST, np.int32(0)), LAST)
    share = min(max((t - lower[b]) / (lower[b + 1] - lower[b]), 0.0), 1.0)
    inside = share * (sums[b + 1] - sums[b])
    return sums[b] + inside, moments[b] + inside * (lower[b] + t) / 2


@kernel
def _rate_and_gain(
    t: float,
    half: int,
    largest: float,
    lower: NDArray[np.float64],
    sums: NDArray[np.float64],
    moments: NDArray[np.float64],
) -> tuple[float, float]:
    """Bits a number when rounded to multiples of t, sign included, and the squared error that means of levels save."""
    n = sums[BINS]
    count, moment = _below(t * ZONE, lower, sums, moments)
    bits = n - count + n * np.log2(n)
    if count > 0:
        bits -= count * np.log2(count)
    gain = 0.0
    for k in range(1, half + 1):
        if t * (k - 1 + ZONE) > largest:
            break
        upto, upto_moment = n, moments[BINS]
        if k < half:
            upto, upto_moment = _below(t * (k + ZONE), lower, sums, moments)
        mass, inside = upto - count, upto_moment - moment
        if mass > 0:
            bits -= mass * np.log2(mass)
            gain += inside * inside / mass
        count, moment = upto, upto_moment
    return bits / n, gain


def step_for_rate(
    x: NDArray[np.float32], edges: NDArray[np.int64], units: NDArray[np.float64], bits: float, half: int
) -> tuple[float, float]:
    """Find a step in units so that magnitudes, rounded to at most `half` multiples, and signs have this entropy.

    Where clamping to `half` multiples loses more than a smaller step gains, the entropy is less, and the step is that
    of the least squared error. The largest magnitude is never rounded to 0, whatever the rate.

    Args:
        x: float32[n], finite.
        edges: int64[m + 1], rising from 0 to n.
        units: float64[m], what the magnitudes of a block are measured in, such as their root mean square; 0 for zeros.
        bits: for each number, positive.
        half: 2 to 127.

    Returns:
        The step, and the largest step that does not round everything to 0; 1 and 1 where all is 0.
    """
    x, units = vector(x, np.float32, "x"), vector(units, np.float64, "units")
    edges = checked_blocks(edges, x.size, units.size)
    counts = np.empty(BINS, np.int64)
    inverse = np.divide(1.0, units, out=np.zeros(units.size), where=units > 0)
    largest = float(_histogram(x, edges, inverse, counts))
    if largest == 0:
        return 1.0, 1.0
    lower = ((np.arange(BINS + 1, dtype=np.int32) + LOWEST) << SHIFT).view(np.float32).astype(np.float64)
    lower[0] = 0.0
    sums, moments = (np.concatenate([[0.0], np.cumsum(v)]) for v in (counts, counts * (lower[1:] + lower[:-1]) / 2))

    def at(step: float) -> tuple[float, float]:
        rate, gain = _rate_and_gain(step, half, largest, lower, sums, moments)
        return rate, gain

    top = largest / ZONE * (1 - 1e-6)
    unclamped = largest / half
    if at(unclamped)[0] > bits:
        return _halved(lambda step: at(step)[0] > bits, unclamped, top), top
    best = _most(lambda step: at(step)[1], unclamped * CLAMPED, unclamped)
    return (_halved(lambda step: at(step)[0] > bits, best, unclamped) if at(best)[0] > bits else best), top


def _halved(too_small: Callable[[float], bool], low: float, high: float) -> float:
    """Where `too_small` ends between a step for which it holds and one that is taken if need be."""
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


def _most(gain: Callable[[float], float], low: float, high: float) -> float:
    """The step of the largest gain, by golden sections of the logarithm (Kiefer, 1953)."""
    for _ in range(SECTIONS):
        first, second = high * (low / high) ** GOLDEN, low * (high / low) ** GOLDEN
        low, high = (first, high) if gain(first) < gain(second) else (low, second)
    return high
