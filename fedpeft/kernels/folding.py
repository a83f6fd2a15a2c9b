"""Adding vectors to float64 sums, four at once, each coordinate in the order of the vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, writable

TOGETHER = 4
BLOCK = 1 << 14
SMALLEST = np.float32(1e-45)


@kernel
def _add_four(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    d: NDArray[np.float32],
    weights: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for i in range(total.size):
        held = total[i] + wa * np.float64(a[i]) + wb * np.float64(b[i])
        total[i] = held + wc * np.float64(c[i]) + wd * np.float64(d[i])


@kernel
def _vote_four(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    d: NDArray[np.float32],
    least: NDArray[np.float32],
    values: NDArray[np.float64],
    votes: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """The four sums lie BLOCK apart in one array: only then is the loop compiled to vector instructions."""
    la, lb, lc, ld = least[0], least[1], least[2], least[3]
    wa, wb, wc, wd = values[0], values[1], values[2], values[3]
    va, vb, vc, vd = votes[0], votes[1], votes[2], votes[3]
    for i in range(a.size):
        plus, minus = sums[i], sums[i + BLOCK]
        for_plus, for_minus = sums[i + 2 * BLOCK], sums[i + 3 * BLOCK]
        x, y = a[i], wa * np.float64(a[i])
        plus += y if x >= la else 0.0
        for_plus += va if x >= la else 0.0
        minus -= y if -x >= la else 0.0
        for_minus += va if -x >= la else 0.0
        x, y = b[i], wb * np.float64(b[i])
        plus += y if x >= lb else 0.0
        for_plus += vb if x >= lb else 0.0
        minus -= y if -x >= lb else 0.0
        for_minus += vb if -x >= lb else 0.0
        x, y = c[i], wc * np.float64(c[i])
        plus += y if x >= lc else 0.0
        for_plus += vc if x >= lc else 0.0
        minus -= y if -x >= lc else 0.0
        for_minus += vc if -x >= lc else 0.0
        x, y = d[i], wd * np.float64(d[i])
        plus += y if x >= ld else 0.0
        for_plus += vd if x >= ld else 0.0
        minus -= y if -x >= ld else 0.0
        for_minus += vd if -x >= ld else 0.0
        sums[i], sums[i + BLOCK] = plus, minus
        sums[i + 2 * BLOCK], sums[i + 3 * BLOCK] = for_plus, for_minus


def _fours(vectors: Sequence[NDArray[np.float32]], size: int) -> list[NDArray[np.float32]]:
    """The vectors, and as many of zeros, which add nothing, as make whole fours of them.

    Raises:
        ValueError: one has another size or type.
    """
    if any(x.shape != (size,) or x.dtype != np.float32 for x in vectors):
        shapes = [f"{x.dtype}{x.shape}" for x in vectors]
        raise ValueError(f"vectors: expected each of float32({size},), got {shapes}")
    whole = [x if x.flags.carray else np.require(x, np.float32, ["C", "A", "W"]) for x in vectors]
    spare = -len(whole) % TOGETHER
    return whole + [np.zeros(size, np.float32)] * spare if spare else whole


def _numbers(given: Sequence[float], size: int) -> NDArray[np.float64]:
    out = np.zeros(size)
    out[: len(given)] = given
    return out


def add_scaled(vectors: Sequence[NDArray[np.float32]], weights: Sequence[float], total: NDArray[np.float64]) -> None:
    """Add weight * vector to `total` float64[n], one vector after the other; let `total` be small enough for the cache.

    Args:
        vectors: float32[n], any number of them.
        weights: one for each.
        total: where to.

    >>> total = np.ones(2)
    >>> add_scaled([np.array([1, 2], np.float32), np.array([0, 4], np.float32)], [2.0, 0.5], total)
    >>> total.tolist()
    [3.0, 7.0]

    Raises:
        ValueError: the numbers do not fit each other.
    """
    writable(total, np.float64, "total")
    whole = _fours(vectors, total.size)
    numbers = _numbers(weights, len(whole))
    for k in range(0, len(whole), TOGETHER):
        a, b, c, d = whole[k : k + TOGETHER]
        _add_four(a, b, c, d, numbers[k : k + TOGETHER], total)


@dataclass(frozen=True, eq=False)
class Voters:
    """Four vectors whose signs are counted; who fills a four up never counts.

    Args:
        vectors: float32[n] each.
        least: float32[4]: the smallest magnitude of each that counts; zeros never do.
        values: float64[4]: what its coordinates are multiplied by.
        votes: float64[4]: what is counted for a coordinate that is positive, or negative.
    """

    vectors: tuple[NDArray[np.float32], ...]
    least: NDArray[np.float32]
    values: NDArray[np.float64]
    votes: NDArray[np.float64]


def voters(
    vectors: Sequence[NDArray[np.float32]], least: Sequence[float], values: Sequence[float], votes: Sequence[float]
) -> list[Voters]:
    """Any number of vectors of one size, by fours.

    Raises:
        ValueError: one has another size or type.
    """
    whole, padded = _fours(vectors, vectors[0].size), -(-len(vectors) // TOGETHER) * TOGETHER
    lowest = np.full(padded, np.inf, np.float32)
    lowest[: len(least)] = least
    lowest = np.maximum(lowest, SMALLEST)
    scaled, cast = _numbers(values, padded), _numbers(votes, padded)
    fours = [slice(k, k + TOGETHER) for k in range(0, padded, TOGETHER)]
    return [Voters(tuple(whole[four]), lowest[four], scaled[four], cast[four]) for four in fours]


def add_votes(four: Voters, where: slice, sums: NDArray[np.float64]) -> None:
    """Add what is positive and what is negative of each vector apart, and whose it is, one vector after the other.

    Args:
        four: whose signs are counted.
        where: at most BLOCK coordinates of theirs.
        sums: float64[4 BLOCK]: of positive parts, of the magnitudes of negative parts, of votes for plus and for minus,
            each in the first n of BLOCK numbers.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    writable(sums, np.float64, "sums")
    a, b, c, d = (vector[where] for vector in four.vectors)
    if sums.size != TOGETHER * BLOCK or a.size > BLOCK:
        raise ValueError(f"sums: expected 4 times {BLOCK} numbers for at most {BLOCK}, got {sums.size} for {a.size}")
    _vote_four(a, b, c, d, four.least, four.values, four.votes, sums)
