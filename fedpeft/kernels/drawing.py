"""Sampling without replacement in one pass: one coordinate from each of k stretches."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector, writable

HALF = np.uint64(32)


@kernel
def _place(i: int, k: int, n: int, first: int, word: np.uint32) -> int:
    """Draw from stretch i of k, on the circle of n coordinates that begins at `first`."""
    begin, end = i * n // k, (i + 1) * n // k
    place: int = first + begin + np.int64((np.uint64(word) * np.uint64(end - begin)) >> HALF)  # type: ignore[assignment]
    return place if place < n else place - n


@kernel
def _take(x: NDArray[np.float32], first: int, words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    for i in range(words.size):
        out[i] = x[_place(i, words.size, x.size, first, words[i])]


@kernel
def _put(values: NDArray[np.float32], first: int, words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    for i in range(words.size):
        out[_place(i, words.size, out.size, first, words[i])] = values[i]


def _first(words: NDArray[np.uint32], n: int, k: int) -> tuple[int, NDArray[np.uint32]]:
    words = vector(words, np.uint32, "words")
    if words.size != k + 1 or not 1 <= k <= n < 1 << 32:
        raise ValueError(f"words: expected one, and one for each of 1 to {n} draws, got {words.size} for {k} draws")
    return int(words[0]) * n >> 32, words[1:]


def take_strata(x: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Take k coordinates at random, each of the n with probability k / n.

    The coordinates lie on a circle that is cut, at a random place, into k stretches whose sizes differ by one at
    most; one coordinate of each is drawn (W. Cochran, "Sampling Techniques", 1977, chapter 5, with a random start).

    Args:
        x: float32[n], n < 2^32.
        words: uint32[k + 1], random, k >= 1: where the circle is cut, and a draw for each stretch.
    """
    x = vector(x, np.float32, "x")
    first, draws = _first(words, x.size, words.size - 1)
    out = np.empty(draws.size, np.float32)
    _take(x, first, draws, out)
    return out


def put_strata(values: NDArray[np.float32], words: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
    """Put values where `take_strata` took them from; the rest of `out` stays as it is."""
    writable(out, np.float32, "out")
    values = vector(values, np.float32, "values")
    first, draws = _first(words, out.size, values.size)
    _put(values, first, draws, out)
