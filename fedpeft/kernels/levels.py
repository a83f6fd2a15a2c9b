"""Few levels for many magnitudes: the quantiser with the least squared error, fitted to the numbers themselves."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

BIN = np.uint32(17)  # a bin is a float's exponent and the first 6 bits of its mantissa: 1.6 % wide at most
BINS = 1 << 15


@kernel
def _histogram(
    values: NDArray[np.float32],
    ends: NDArray[np.int64],
    units: NDArray[np.float64],
    mass: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Weigh |value| / unit by unit^2, which is what a squared error of it counts."""
    one = np.empty(1, np.float32)
    bits = one.view(np.uint32)
    begin = 0
    for j in range(units.size):
        weight = units[j] * units[j]
        for i in range(begin, ends[j]):
            relative = abs(np.float64(values[i])) / units[j]
            one[0] = relative
            mass[bits[0] >> BIN] += weight
            total[bits[0] >> BIN] += weight * relative
        begin = ends[j]


@kernel
def _codes(
    values: NDArray[np.float32],
    ends: NDArray[np.int64],
    units: NDArray[np.float64],
    middles: NDArray[np.float64],
    codes: NDArray[np.uint8],
) -> None:
    begin = 0
    for j in range(units.size):
        for i in range(begin, ends[j]):
            magnitude = abs(np.float64(values[i]))
            code = 0
            for middle in middles:
                code += magnitude > middle * units[j]
            codes[i] = code << 1 | (values[i] < 0)
        begin = ends[j]


@kernel
def _cuts(mass: NDArray[np.float64], total: NDArray[np.float64], m: int) -> NDArray[np.int64]:
    """Cut bins into m ranges of which the squared totals over masses sum to the most; ranges may be empty.

    `mass` and `total` are sums up to each bin. The best last cut rises with the number of bins, so it is sought between
    those of a smaller and a larger number (X. Wu, "Optimal quantization by matrix searching", Journal of Algorithms 12,
    1991, has the same of fewer steps still).
    """
    n = mass.size - 1
    cuts = np.zeros((m, n + 1), np.int64)
    before, now = np.zeros(n + 1), np.zeros(n + 1)
    for j in range(1, n + 1):
        before[j] = total[j] * total[j] / mass[j]
    for r in range(1, m):
        step = 1
        while 2 * step <= n:
            step *= 2
        while step > 0:
            for j in range(step, n + 1, 2 * step):
                most = -1.0
                for i in range(cuts[r, j - step], 1 + (min(j, cuts[r, j + step]) if j + step <= n else j)):
                    inside = total[j] - total[i]
                    gain = before[i] + (inside * inside / (mass[j] - mass[i]) if mass[i] < mass[j] else 0.0)
                    if gain >= most:
                        most, cuts[r, j] = gain, i
                now[j] = most
            step //= 2
        before, now = now, before
    found = np.empty(m + 1, np.int64)
    found[m] = n
    for r in range(m - 1, -1, -1):
        found[r] = cuts[r, found[r + 1]]
    return found


def _fit(mass: NDArray[np.float64], total: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """The means of m ranges of bins; of an empty range, that of the one before."""
    used = mass > 0
    mass, total = (np.concatenate([[0.0], np.cumsum(sums[used])]) for sums in (mass, total))
    cuts = _cuts(mass, total, m)
    inside = mass[cuts[1:]] - mass[cuts[:-1]]
    means = np.divide(total[cuts[1:]] - total[cuts[:-1]], inside, out=np.zeros(m), where=inside > 0)
    levels: NDArray[np.float64] = np.maximum.accumulate(means)
    return levels


def quantise_kept(
    values: NDArray[np.float32], counts: NDArray[np.int64], units: NDArray[np.float64], m: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Fit m levels to |value| / unit, weighted by unit^2, and round to them.

    No other levels have a smaller squared error, but for what lies within bins of 1.6 % of a magnitude.

    Args:
        values: float32[n], finite, none zero, slot after slot.
        counts: int64[s], how many of each slot.
        units: float64[s], each > 0.
        m: 1 to 128.

    Returns:
        codes uint8[n], twice the level and one more where the value is negative, and the levels float64[m], rising.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    values, counts = vector(values, np.float32, "values"), vector(counts, np.int64, "counts")
    units = vector(units, np.float64, "units")
    if counts.size != units.size or np.any(counts < 0) or counts.sum() != values.size or not np.all(units > 0):
        raise ValueError(f"counts, units: expected {values.size} values in slots of positive units, got {counts}")
    if not 1 <= m <= 128:
        raise ValueError(f"m: expected 1 to 128 levels, got {m}")
    codes = np.empty(values.size, np.uint8)
    if not values.size:
        return codes, np.zeros(m)
    ends = np.cumsum(counts)
    mass, total = np.zeros(BINS), np.zeros(BINS)
    _histogram(values, ends, units, mass, total)
    levels = _fit(mass, total, m)
    _codes(values, ends, units, (levels[1:] + levels[:-1]) / 2, codes)
    return codes, levels
