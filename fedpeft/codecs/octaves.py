"""Positive numbers on a grid of eighths of a factor of two: one byte each, beside the largest."""

import numpy as np
from numpy.typing import NDArray

STEPS, LOWEST = 8, 255  # steps to a factor of two, which puts a number within 4.4 % of its own; the last place
# 2^(-k / 8): written out, since two machines' powers may differ in the last bit.
_EIGHTHS = (
    1.0,
    0.9170040432046712,
    0.8408964152537145,
    0.7711054127039704,
    0.7071067811865476,
    0.6484197773255048,
    0.5946035575013605,
    0.5452538663326288,
)
_SHARES = np.array([np.ldexp(_EIGHTHS[place % STEPS], -(place // STEPS)) for place in range(LOWEST + 1)])


def places(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Each number's place below the largest; `LOWEST` for zeros and for what lies beyond the grid."""
    top = values.max(initial=0.0)
    below = np.full(values.shape, float(LOWEST))
    some = values > 0
    below[some] = np.round(STEPS * np.log2(top / values[some]))
    found: NDArray[np.uint8] = np.minimum(below, LOWEST).astype(np.uint8)
    return found


def shares(places: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What places stand for, as shares of the largest: 2^(-place / 8)."""
    found: NDArray[np.float64] = _SHARES[places]
    return found
