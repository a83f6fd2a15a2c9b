"""What a mask keeps: counted, and put back to where it was."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels.jit import bits_set, kernel, trailing_zeros, vector, words, writable
from fedpeft.kernels.planes import FULL, ONE


@kernel
def _count(mask: NDArray[np.uint64], bounds: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    for j in range(counts.size):
        start, stop = bounds[j], bounds[j + 1]
        count = np.uint64(0)
        for w in range(start >> 6, (stop + 63) >> 6):
            m = mask[w]
            if start > w << 6:
                m &= FULL << np.uint64(start & 63)
            if stop < (w + 1) << 6:
                m &= FULL >> np.uint64(64 - (stop & 63))
            count += bits_set(m)
        counts[j] = count


@kernel
def _spread(mask: NDArray[np.uint64], values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    taken = 0
    for w in range(mask.size):
        word = mask[w]
        while word != 0:
            out[np.uint64(w << 6) + trailing_zeros(word)] = values[taken]
            taken += 1
            word &= word - ONE


def kept_by_slot(mask: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the set bits of each slot.

    Args:
        mask: uint8[ceil(n / 8)], bits past n zero.
        bounds: int64[m + 1], rising from 0 to n.
    """
    bounds = vector(bounds, np.int64, "bounds")
    if not bounds.size or bounds[0] != 0 or np.any(np.diff(bounds) < 0) or (bounds[-1] + 7) // 8 != mask.size:
        raise ValueError(f"bounds: expected to rise from 0 to the end of {mask.size} bytes, got {bounds[-1:]}")
    counts = np.zeros(bounds.size - 1, np.int64)
    _count(words(vector(mask, np.uint8, "mask"), 0), bounds, counts)
    return counts


def spread_kept(mask: NDArray[np.uint8], values: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Give float32[n] with the values where the mask's bits are set, in order, and zeros elsewhere.

    Raises:
        PayloadError: mask, values and n do not fit each other.
    """
    mask, values = vector(mask, np.uint8, "mask"), vector(values, np.float32, "values")
    if mask.size != (n + 7) // 8 or (n & 7 and mask[-1] >> (n & 7)):
        raise PayloadError(Defect.PADDING, f"mask: expected {n} bits and zeros up to the byte after")
    wide = words(mask, 0)
    counts = np.zeros(1, np.int64)
    _count(wide, np.array([0, n]), counts)
    if counts[0] != values.size:
        raise PayloadError(Defect.COUNT, f"the mask keeps {counts[0]} coordinates, but {values.size} values came")
    out = np.zeros(n, np.float32)
    writable(out, np.float32, "out")
    _spread(wide, values, out)
    return out
