"""Adding many ternary vectors from their bit planes: eight at a time, by tables of what any of the eight sum up to.

The method of the four Russians (Arlazarov, Dinic, Kronrod and Faradzev, 1970). Of eight vectors, the bits of one
coordinate are one byte of plus signs and one of minus signs; a table of 256 sums says what that adds. So a coordinate
costs two look-ups for each eight vectors, however many of them are zero there.
"""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import add_pairs, kernel, writable
from fedpeft.kernels.turning import CHUNK, EIGHT, FULL, LANES, ZERO, turn, within

WORDS = 256
ONE, BYTE, STEP = np.uint64(1), np.uint64(255), np.uint64(8)


@kernel
def _gather(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    scales: NDArray[np.float64],
    first: int,
    word: int,
    inside: NDArray[np.uint64],
    plus: NDArray[np.uint64],
    minus: NDArray[np.uint64],
) -> None:
    """Eight vectors' signs in a chunk of words; a negative scale turns them, and a zero one leaves none."""
    for k in range(EIGHT):
        scale = scales[first + k]
        row = np.uint64((first + k) * WORDS + word)
        every = FULL if scale != 0 else ZERO
        turned = FULL if scale < 0 else ZERO
        for w in range(CHUNK):
            kept = mask[row + np.uint64(w)] & inside[w] & every
            below = negative[row + np.uint64(w)] ^ turned
            plus[k * CHUNK + w] = kept & ~below
            minus[k * CHUNK + w] = kept & below
    turn(plus)
    turn(minus)


@kernel
def _tabulate(scales: NDArray[np.float64], values: NDArray[np.float64], votes: NDArray[np.float64],
              table: NDArray[np.float64]) -> None:  # fmt: skip
    """For each eight vectors, what any of them add up to: pairs of value and vote."""
    for first in range(0, scales.size, EIGHT):
        base = first * 64
        table[base], table[base + 1] = 0.0, 0.0
        for k in range(EIGHT):
            value, vote = abs(scales[first + k]) * values[first + k], votes[first + k]
            for b in range(1 << k):
                table[base + 2 * (b + (1 << k))] = table[base + 2 * b] + value
                table[base + 2 * (b + (1 << k)) + 1] = table[base + 2 * b + 1] + vote


@kernel
def _look_up_votes(
    plus: NDArray[np.uint64], minus: NDArray[np.uint64], table: NDArray[np.float64], held: NDArray[np.float64]
) -> None:
    """held[4 i : 4 i + 4] gets, of coordinate i, the values and the votes for plus and for minus."""
    for b in range(EIGHT):
        for w in range(CHUNK):
            p, m = plus[b * CHUNK + w], minus[b * CHUNK + w]
            at = np.uint64(4 * (LANES * w + EIGHT * b))
            for _ in range(EIGHT):
                add_pairs(held, at, table, (p & BYTE) << ONE, (m & BYTE) << ONE)
                p >>= STEP
                m >>= STEP
                at += np.uint64(4)


@kernel
def _look_up_values(
    plus: NDArray[np.uint64], minus: NDArray[np.uint64], table: NDArray[np.float64], held: NDArray[np.float64]
) -> None:
    """held[i] gets the difference of the values for plus and for minus."""
    for b in range(EIGHT):
        for w in range(CHUNK):
            p, m = plus[b * CHUNK + w], minus[b * CHUNK + w]
            at = np.uint64(LANES * w + EIGHT * b)
            for _ in range(EIGHT):
                held[at] += table[(p & BYTE) << ONE] - table[(m & BYTE) << ONE]
                p >>= STEP
                m >>= STEP
                at += ONE


@kernel
def _spread(
    held: NDArray[np.float64],
    skipped: int,
    start: int,
    stop: int,
    apart: bool,
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Add what a chunk has found to where it belongs."""
    if apart:
        for q in range(4):
            total = sums[q][start:stop]
            for i in range(total.size):
                total[i] += held[4 * (skipped + i) + q]
    else:
        total = sums[0][start:stop]
        for i in range(total.size):
            total[i] += held[skipped + i]


@kernel
def _fold(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    values: NDArray[np.float64],
    votes: NDArray[np.float64],
    apart: bool,
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> None:
    n = values.size
    table = np.empty(n * 64)
    held = np.empty(4 * LANES * CHUNK)
    inside = np.empty(CHUNK, np.uint64)
    plus, minus = np.empty(EIGHT * CHUNK, np.uint64), np.empty(EIGHT * CHUNK, np.uint64)
    for s in range(edges.size - 1):
        start, stop = edges[s], edges[s + 1]
        row = scales[s * n : (s + 1) * n]
        _tabulate(row, values, votes, table)
        for at in range(start - start % (LANES * CHUNK), stop, LANES * CHUNK):
            for w in range(CHUNK):
                inside[w] = within(start, stop, at + LANES * w)
            held[:] = 0.0
            for first in range(0, n, EIGHT):
                _gather(mask, negative, row, first, at // LANES, inside, plus, minus)
                subsets = table[first * 64 : (first + EIGHT) * 64]
                if apart:
                    _look_up_votes(plus, minus, subsets, held)
                else:
                    _look_up_values(plus, minus, subsets, held)
            _spread(held, max(start, at) - at, max(start, at), min(stop, at + LANES * CHUNK), apart, sums)


def _checked(
    planes: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    size: int,
) -> int:
    """How many vectors there are.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    n = len(planes[0])
    if any(plane.shape != (n, WORDS) or not plane.flags.carray for plane in planes) or n % EIGHT:
        raise ValueError(f"planes: expected (8 m, {WORDS}) contiguous words, got {[plane.shape for plane in planes]}")
    if scales.shape != (edges.size - 1, n):
        raise ValueError(f"scales: expected {(edges.size - 1, n)}, got {scales.shape}")
    if edges[0] < 0 or np.any(np.diff(edges) < 0) or edges[-1] > min(size, LANES * WORDS):
        raise ValueError(f"edges: expected to rise from 0 to at most {min(size, LANES * WORDS)}, got {edges}")
    return n


def add_plane_values(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    values: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Add sum_k values[k] * (what the planes of vector k stand for) to `total` float64[at most 64 WORDS].

    The vectors are summed among themselves, by eights, before they are added.

    Args:
        mask: uint64[8 m, WORDS]; bit i & 63 of word i >> 6 says that coordinate i is kept.
        negative: the same for minus signs.
        edges: int64[p + 1], rising: where pieces begin and end.
        scales: float64[p, 8 m], finite: of each piece and vector.
        values: float64[8 m].
        total: where to.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    _checked((mask, negative), edges, scales, total.size)
    writable(total, np.float64, "total")
    _fold(mask.reshape(-1), negative.reshape(-1), edges, scales.reshape(-1), values, values, False, (total,) * 4)


def add_plane_votes(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    values: NDArray[np.float64],
    votes: NDArray[np.float64],
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Add what is positive and what is negative of ternary vectors apart, and whose it is.

    Args:
        mask: uint64[8 m, WORDS], as for `add_plane_values`.
        negative: the same for minus signs.
        edges: int64[p + 1], rising: where pieces begin and end.
        scales: float64[p, 8 m], finite: of each piece and vector.
        values: float64[8 m]: what a vector's coordinates are multiplied by.
        votes: float64[8 m]: what is counted for a coordinate that is positive, or negative.
        sums: positive parts, magnitudes of negative parts, votes for plus, votes for minus: float64[n] each.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    _checked((mask, negative), edges, scales, min(total.size for total in sums))
    for total in sums:
        writable(total, np.float64, "sums")
    plus, minus, for_plus, for_minus = sums
    pairs = (plus, for_plus, minus, for_minus)
    _fold(mask.reshape(-1), negative.reshape(-1), edges, scales.reshape(-1), values, votes, True, pairs)
