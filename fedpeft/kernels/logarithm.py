"""A real number as one byte: its sign and the logarithm of its magnitude."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

STEPS = 16  # levels an octave
ZERO = 127  # the code of 0, and how many levels each sign has
MANTISSA_BITS, MANTISSA = np.uint32(23), np.uint32(0x7FFFFF)
EXPONENT_OF_ONE, OCTAVE_STEPS, TOP = np.int32(127), np.int32(STEPS), np.int32(ZERO)
ONE, NONE = np.int32(1), np.int32(0)
LANES = 64  # numbers that are compared with one boundary at a time


def _powers(n: int) -> NDArray[np.float64]:
    """2^(j / n) for j < n, a power of two: square roots and products alone, which all machines round alike."""
    root = 2.0
    for _ in range(n.bit_length() - 1):
        root = float(np.sqrt(root))
    powers = [1.0]
    for _ in range(n - 1):
        powers.append(powers[-1] * root)
    return np.array(powers)


# The boundaries between levels within an octave: 2^((2 j + 1) / 32), of which only the mantissa's bits are kept.
BOUNDARIES = _powers(2 * STEPS)[1::2].astype(np.float32).view(np.uint32) & MANTISSA
_OCTAVE = _powers(STEPS)


def _levels() -> NDArray[np.float32]:
    exponents, steps = np.divmod(np.arange(1 - ZERO, 1), STEPS)
    magnitudes = np.ldexp(_OCTAVE[steps], exponents).astype(np.float32)
    return np.concatenate([-magnitudes[::-1], np.zeros(1, np.float32), magnitudes])


LEVELS = _levels()


@kernel
def _encode(
    x: NDArray[np.float32], largest: np.float32, boundaries: NDArray[np.uint32], codes: NDArray[np.uint8]
) -> None:
    ratios = np.zeros(LANES, np.float32)
    bits = ratios.view(np.uint32)
    levels = np.empty(LANES, np.int32)
    for begin in range(0, x.size, LANES):
        count = min(LANES, x.size - begin)
        for lane in range(np.uint64(count)):
            ratios[lane] = abs(x[np.uint64(begin) + lane]) / largest
        for lane in range(np.uint64(LANES)):
            levels[lane] = (np.int32(bits[lane] >> MANTISSA_BITS) - EXPONENT_OF_ONE) * OCTAVE_STEPS + TOP
        for boundary in boundaries:
            for lane in range(np.uint64(LANES)):
                levels[lane] += ONE if (bits[lane] & MANTISSA) >= boundary else NONE
        for lane in range(np.uint64(count)):
            level = max(NONE, levels[lane])
            codes[np.uint64(begin) + lane] = TOP + level if x[np.uint64(begin) + lane] > 0 else TOP - level


def log_codes(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], np.float32]:
    """The largest magnitude s of float32[n], and for each number the code of the level of `LEVELS` next to x / s.

    Code 127 + q stands for 2^((q - 127) / 16), code 127 - q for its negative, with q from 1 to 127, and 127 for zero.
    The level next to a ratio is the one that is next to its logarithm: the boundary between two is their geometric
    mean, rounded to float32.

    >>> log_codes(np.array([8, -4, 0], np.float32))
    (array([254,  16, 127], dtype=uint8), np.float32(8.0))

    Args:
        x: float32[n], finite.
    """
    x = vector(x, np.float32, "x")
    largest = np.float32(np.abs(x).max(initial=0))
    codes = np.full(x.size, ZERO, np.uint8)
    if largest > 0:
        _encode(x, largest, BOUNDARIES, codes)
    return codes, largest
