"""A scalar as one byte: a sign, and a whole number of a few binary digits."""

import numpy as np
from numpy.typing import NDArray

MINUS = 128  # added to a magnitude's code
LARGEST = 127


def _levels() -> NDArray[np.int64]:
    codes = np.arange(MINUS)
    magnitudes = np.where(codes < 8, codes, 8 + codes % 8 << np.maximum(codes // 8 - 1, 0))
    return np.concatenate([magnitudes, -magnitudes])


LEVELS = _levels()
_MAGNITUDES = LEVELS[:MINUS].astype(np.float64)


def encode(
    values: NDArray[np.float64], largest: int = LARGEST, words: NDArray[np.uint32] | None = None
) -> NDArray[np.uint8]:
    """The codes of levels next to values.

    Code m < 8 stands for m, code m < 128 for (8 + m % 8) 2^(m // 8 - 1), up to 15 * 2^14 = 245,760, and code 128 + m
    for the negative; 128 is no code. So sums of levels are exact whatever their order, and what lies between 8 and the
    largest is off by at most one part in 17. "Just One Byte (per gradient)" (Zelikman et al., 2023, arXiv 2306.10015)
    sends round(16 ln |g|), clipped to 127 either way, and a sign beside it, which are 9 bits; its levels are powers,
    whose sums are rounded.

    >>> LEVELS[encode(np.array([-3.0, 8.4, 250.0, 1e9]))].tolist()
    [-3, 8, 256, 245760]

    Args:
        values: finite.
        largest: the code of the largest magnitude, in [1, 127]; what is larger becomes this.
        words: uint32[n], random: round up or down at random, so that the mean is the value; None: to the nearer level,
            the lower of two.
    """
    steps = _MAGNITUDES[: largest + 1]
    size = np.minimum(np.abs(values), steps[-1])
    if words is None:
        codes = np.searchsorted((steps[1:] + steps[:-1]) / 2, size)
    else:
        codes = np.minimum(np.searchsorted(steps, size, side="right") - 1, largest - 1)
        share = (size - steps[codes]) / (steps[codes + 1] - steps[codes])
        codes += words < share * 2.0**32
    signed: NDArray[np.uint8] = np.where((values < 0) & (codes > 0), codes + MINUS, codes).astype(np.uint8)
    return signed


def refused(codes: NDArray[np.uint8], largest: int) -> NDArray[np.bool_]:
    """Which codes stand for nothing, or for more than is allowed."""
    wrong: NDArray[np.bool_] = (codes % MINUS > largest) | (codes == MINUS)
    return wrong
