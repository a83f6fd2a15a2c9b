"""Sampling by rank: within a row, the larger a magnitude the likelier it is kept."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector
from fedpeft.kernels.planes import MAGNITUDE, ONE

KEY = np.uint32(19)  # magnitudes of one exponent and the same first 4 bits of the mantissa share a rank
KEYS = 1 << 12
SHORT = 16  # numbers of a row that are compared in pairs, in one vector instruction
BEYOND = np.int32(KEYS)
TWO_32 = 4294967296.0


@kernel
def _row_ranks(keys: NDArray[np.int32], n: int, below: NDArray[np.int64], twice: NDArray[np.int32]) -> None:
    """Give each number of a row twice its rank from 0, the mean rank of those with the same key.

    `keys` has at least SHORT entries, and those past n are BEYOND all.
    """
    if n <= SHORT:
        for i in range(n):
            rank = np.int32(-1)
            for j in range(SHORT):
                rank += np.int32(keys[j] < keys[i]) + np.int32(keys[j] <= keys[i])
            twice[i] = rank
        return
    low, high = keys[0], keys[0]
    for i in range(n):
        low, high = min(low, keys[i]), max(high, keys[i])
    below[low : high + 1] = 0
    for i in range(n):
        below[keys[i]] += 1
    less = 0
    for b in range(low, high + 1):
        count = below[b]
        below[b] = 2 * less + count - 1
        less += count
    for i in range(n):
        twice[i] = below[keys[i]]


@kernel
def _sample(
    bits: NDArray[np.uint32],
    x: NDArray[np.float32],
    row: int,
    least: float,
    spread: float,
    words: NDArray[np.uint32],
    mask: NDArray[np.uint64],
    first: int,
    values: NDArray[np.float32],
) -> int:
    """Keep with probability least + spread * rank / (row - 1); values over that probability are moved together."""
    keys = np.full(max(row, SHORT), BEYOND, np.int32)
    twice, below = np.empty(row, np.int32), np.empty(KEYS, np.int64)
    hit, places = np.empty(row, np.uint8), np.empty(row + 1, np.int64)
    step = spread / (2 * (row - 1)) if row > 1 else 0.0
    start = least if row > 1 else least + spread / 2
    written = 0
    for begin in range(0, bits.size, row):
        own, drawn, numbers = bits[begin : begin + row], words[begin : begin + row], x[begin : begin + row]
        for i in range(row):
            keys[i] = np.int32((own[i] & MAGNITUDE) >> KEY)
        _row_ranks(keys, row, below, twice)
        for i in range(row):
            likely = np.float64(drawn[i]) < start * TWO_32 + step * TWO_32 * np.float64(twice[i])
            hit[i] = np.uint8(likely) & np.uint8((own[i] & MAGNITUDE) != 0)
        count = 0
        for i in range(row):
            places[count] = i
            count += hit[i]
        for i in range(count):
            at = places[i]
            values[written + i] = numbers[at] / (start + step * twice[at])
            to = np.uint64(first + begin + at)
            mask[to >> np.uint64(6)] |= ONE << (to & np.uint64(63))
        written += count
    return written


def keep_by_rank(
    x: NDArray[np.float32],
    row: int,
    least: float,
    most: float,
    words: NDArray[np.uint32],
    mask: NDArray[np.uint64],
    first: int,
) -> NDArray[np.float32]:
    """Keep each number with a probability that rises evenly with the rank of its magnitude in its row.

    Magnitudes that agree in exponent and the first 4 bits of the mantissa share their mean rank, so a rank costs no
    sort. Zeros are never kept.

    Args:
        x: float32[n], finite.
        row: numbers in a row; divides n.
        least: probability of the smallest of a row, > 0.
        most: of the largest, <= 1; in a row of one number both count half.
        words: uint32[n], random.
        mask: uint64[...]; the bit of x[i] is bit `first + i`.
        first: where x begins in the mask.

    Returns:
        x_i over its probability, for those kept, in order.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    x, words = vector(x, np.float32, "x"), vector(words, np.uint32, "words")
    if x.size != words.size or row < 1 or x.size % row:
        raise ValueError(f"x, row, words: expected whole rows of {row} and {x.size} words, got {words.size}")
    if not 0 < least <= most <= 1 + 1e-12:
        raise ValueError(f"least, most: expected 0 < least <= most <= 1, got {least} and {most}")
    if first < 0 or first + x.size > 64 * mask.size:
        raise ValueError(f"mask: expected {first + x.size} bits, got {64 * mask.size}")
    values = np.empty(x.size, np.float32)
    count = _sample(x.view(np.uint32), x, int(row), float(least), float(most - least), words, mask, int(first), values)
    return values[:count].copy()
