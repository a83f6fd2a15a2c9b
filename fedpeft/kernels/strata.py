"""One number at random from each of k ranges of nearly equal length."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

ONE = np.uint64(1)


@kernel
def _draw(keys: NDArray[np.uint64], n: int, out: NDArray[np.int64]) -> None:
    least, more = n // keys.size, n % keys.size
    begin = carried = 0
    for i in range(keys.size):
        width = least
        carried += more
        if carried >= keys.size:
            carried -= keys.size
            width += 1
        out[i] = begin + np.int64((keys[i] >> ONE) % np.uint64(width))
        begin += width


def stratified(words: NDArray[np.uint32], n: int) -> NDArray[np.int64]:
    """One of the numbers i n // k to (i + 1) n // k - 1 for each i < k, by the upper 63 of 64 random bits.

    Args:
        words: uint32[2 k].
        n: at least k.

    >>> stratified(np.arange(8, dtype=np.uint32), 4).tolist()
    [0, 1, 2, 3]
    """
    keys = vector(words, np.uint32, "words").view(np.uint64)
    if n < keys.size:
        raise ValueError(f"n: expected at least one number for each of {keys.size} ranges, got {n}")
    out = np.empty(keys.size, np.int64)
    if out.size:
        _draw(keys, n, out)
    return out
