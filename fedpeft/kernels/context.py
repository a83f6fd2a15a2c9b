"""Ternary planes as one arithmetic code whose chances are learned from what is already coded.

Each slot is a grid of rows along its longer axis. A row's coordinates are coded in order: whether one is kept, and
then its sign. Three counters guess whether it is kept (that of its column; that of its place in the row and how many
before it are kept; that of how many are kept and how sure the vote on its sign is), and a mixer weighs them. The vote
on a sign is a logistic regression on the kept signs before it in its row, learned online: where the grid is a factor
of low rank, columns are correlated, and a few signs tell the others. A counter turns the vote into a chance, so a vote
that knows nothing costs nothing.

All is causal and in integers, so both ends learn the same to the last bit, and no tables are sent.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import arithmetic, logistic, planes
from fedpeft.kernels.arithmetic import Coder
from fedpeft.kernels.jit import inlined, kernel, vector
from fedpeft.kernels.logistic import ONE, count, learn, mixed, squash, stretch

GRID = 6  # begin, rows, columns, step to the next row, step to the next column, family
BUCKETS, BUCKET_LIMIT = 24, 2048
VOTES, FINE_VOTES = 16, 48
PLACE, SURENESS, AGREEMENT = 0, BUCKETS * BUCKETS, BUCKETS * (BUCKETS + VOTES)
CONTEXTS = AGREEMENT + FINE_VOTES
LEAST_KEPT, LEAST_SIGN = ONE >> 10, ONE >> 9  # least chances, hence at most 10 and 9 bits
WINDOW = 64  # columns that a sign votes for
MOST_WEIGHT = 16 * ONE
CAUTION = 60  # bits that a column begins as if it had seen
EAGER = 1024
# The regression's rate, 0.8 / sqrt(n + 1) and at least 0.025, in 2^16ths, after n signs of a column.
EAGERNESS = (0.8 * ONE / np.sqrt(np.arange(1.0, EAGER + 1))).astype(np.int32)


def _buckets() -> NDArray[np.int32]:
    """0 to 7 as they are, then two for each power of two."""
    return np.array([n if n < 8 else 2 * n.bit_length() + (n >> (n.bit_length() - 2)) - 2 for n in range(BUCKET_LIMIT)])


BUCKET = _buckets().astype(np.int32)


class Model(NamedTuple):
    """What is learned.

    Args:
        shared: `CONTEXTS` counters for each family.
        mixer: `BUCKETS` sets of weights for each family.
        columns: a counter for each of the slot's columns.
        votes: the odds, in 2^16ths, that each column's sign is negative, by the row so far.
        weight: of column i for column i + 1 + d, at i * WINDOW + d.
        signs: how many each column has had.
        row: the columns that the row keeps, times two, plus one where the sign is negative.
    """

    shared: logistic.Counters
    mixer: logistic.Mixer
    columns: logistic.Counters
    votes: NDArray[np.int64]
    weight: NDArray[np.int32]
    signs: NDArray[np.int64]
    row: NDArray[np.int64]


@inlined
def _kept(model: Model, family: int, j: int, before: int, bit: int, coder: Coder) -> int:
    """Code whether column `j` is kept, in a row that keeps `before` earlier ones."""
    few = BUCKET[min(before, BUCKET_LIMIT - 1)]
    first = family * CONTEXTS
    place = first + PLACE + BUCKETS * BUCKET[min(j, BUCKET_LIMIT - 1)] + few
    sure = first + SURENESS + VOTES * few + min(abs(model.votes[j]) >> 14, VOTES - 1)
    a, b, c = stretch(model.columns, j), stretch(model.shared, place), stretch(model.shared, sure)
    which = family * BUCKETS + few
    chance = min(max(squash(mixed(model.mixer, which, a, b, c)), LEAST_KEPT), ONE - LEAST_KEPT)
    bit = arithmetic.code(bit, chance, coder)
    learn(model.mixer, which, (bit << 16) - chance, a, b, c)
    count(model.columns, j, bit)
    count(model.shared, place, bit)
    count(model.shared, sure, bit)
    return bit


@inlined
def _negative(model: Model, family: int, j: int, bit: int, coder: Coder) -> int:
    """Code the sign of column `j` by its vote: whether the two agree."""
    vote = model.votes[j]
    against = 1 if vote < 0 else 0
    at = family * CONTEXTS + AGREEMENT + min(abs(vote) >> 13, FINE_VOTES - 1)
    chance = min(max(model.shared.chance[at] >> 6, LEAST_SIGN), ONE - LEAST_SIGN)
    agreed = arithmetic.code(bit ^ against, chance, coder)
    count(model.shared, at, agreed)
    return agreed ^ against


@inlined
def _vote(model: Model, j: int, before: int, bit: int) -> None:
    """Learn from the sign of column `j` what earlier ones should have voted, and let it vote for later ones."""
    error = (bit << 16) - squash(model.votes[j] >> 8)
    step = (error * np.int64(EAGERNESS[min(model.signs[j], EAGER - 1)])) >> 16
    model.signs[j] += 1
    for q in range(before - 1, -1, -1):
        i, earlier = model.row[q] >> 1, model.row[q] & 1
        if j - i > WINDOW:
            break
        at = i * WINDOW + j - i - 1
        moved = model.weight[at] + (step if earlier else -step)
        model.weight[at] = min(max(moved, -MOST_WEIGHT), MOST_WEIGHT)
    model.row[before] = j << 1 | bit
    for d in range(min(WINDOW, model.votes.size - j - 1)):
        weight = np.int64(model.weight[j * WINDOW + d])
        model.votes[j + 1 + d] += weight if bit else -weight


@kernel
def _code_slot(
    grid: NDArray[np.int64], model: Model, mask: NDArray[np.uint8], negative: NDArray[np.uint8], coder: Coder
) -> bool:
    """Code one slot: write the planes' bits, or set those that are read; False where the code ended before."""
    begin, rows, columns, row_step, column_step, family = grid
    for i in range(rows):
        if arithmetic.overran(coder):
            return False
        model.votes[:] = 0
        before = 0
        at = begin + i * row_step
        for j in range(columns):
            byte, shift = at >> 3, at & 7
            at += column_step
            if not _kept(model, family, j, before, mask[byte] >> shift & 1, coder):
                continue
            bit = _negative(model, family, j, negative[byte] >> shift & 1, coder)
            _vote(model, j, before, bit)
            before += 1
            if coder.reading:
                mask[byte] |= np.uint8(1 << shift)
                negative[byte] |= np.uint8(bit << shift)
    return True


def _code(
    grids: NDArray[np.int64], density: float, mask: NDArray[np.uint8], negative: NDArray[np.uint8], coder: Coder
) -> bool:
    families = int(grids[:, 5].max(initial=0)) + 1
    shared, mixer = logistic.counters(families * CONTEXTS, density), logistic.mixer(families * BUCKETS)
    for first in range(AGREEMENT, families * CONTEXTS, CONTEXTS):
        shared.chance[first : first + FINE_VOTES] = logistic.fine(np.arange(FINE_VOTES) * 16)
    for grid in grids:
        columns = int(grid[2])
        votes, signs, row = np.zeros((3, columns), np.int64)
        weight = np.zeros(columns * WINDOW, np.int32)
        model = Model(shared, mixer, logistic.counters(columns, density, CAUTION), votes, weight, signs, row)
        if not _code_slot(grid, model, mask, negative, coder):
            return False
    return True


def most_bytes(numel: int) -> int:
    """The most bytes that `encode` makes: less than 20 bits a coordinate, as chances are never below the least."""
    return numel * 5 // 2 + 3


def encode(
    mask: NDArray[np.uint8], signs: NDArray[np.uint8], numel: int, grids: NDArray[np.int64], density: float
) -> NDArray[np.uint8]:
    """One code of the planes that `pack_ternary` makes.

    Args:
        mask: uint8[ceil(numel / 8)].
        signs: one bit for each set in the mask.
        numel: coordinates.
        grids: int64[m, GRID]; slots that share a family are coded with the counters that the earlier of them left.
            Every coordinate lies in one of them.
        density: the chance that counters begin with, in (0, 1].
    """
    mask, signs = vector(mask, np.uint8, "mask"), vector(signs, np.uint8, "signs")
    if mask.size != (numel + 7) // 8 or signs.size != (planes.popcount(mask) + 7) // 8:
        raise ValueError(
            f"planes: expected a mask of {numel} bits and their signs, got {mask.size}, {signs.size} bytes"
        )
    negative = np.zeros(mask.size, np.uint8)
    planes.spread_signs(mask, np.concatenate([signs, np.zeros(2, np.uint8)]), planes.ONES, planes.SPREAD, negative)
    coder = arithmetic.writer(most_bytes(numel))
    _code(_checked(grids, numel), density, mask, negative, coder)
    return coder.stream[: arithmetic.finish(coder)].copy()


def decode(
    stream: NDArray[np.uint8], numel: int, grids: NDArray[np.int64], density: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Undo `encode`: the mask and the signs.

    Raises:
        PayloadError: the bytes are not what `encode` makes.
    """
    mask, negative = np.zeros((2, (numel + 7) // 8), np.uint8)
    coder = arithmetic.reader(vector(stream, np.uint8, "stream"))
    if not _code(_checked(grids, numel), density, mask, negative, coder):
        raise PayloadError(Defect.STREAM, f"the code ends after {stream.size} bytes, before the last coordinate")
    if not arithmetic.ends(coder):
        raise PayloadError(Defect.STREAM, f"expected the code to end with its {stream.size} bytes")
    kept = planes.popcount(mask)
    signs = np.empty(kept // 8 + 1, np.uint8)
    planes.squeeze_signs(mask, negative, planes.ONES, planes.SQUEEZE, signs)
    return mask, signs[: (kept + 7) // 8]


def _checked(grids: NDArray[np.int64], numel: int) -> NDArray[np.int64]:
    """Check that no grid reaches outside the planes."""
    for begin, rows, columns, row_step, column_step, family in grids.tolist():
        last = begin + (rows - 1) * row_step + (columns - 1) * column_step
        if min(begin, rows, columns, row_step, column_step, family) < 0 or (rows and columns and last >= numel):
            raise ValueError(f"grids: expected coordinates from 0 to {numel - 1}, got one from {begin} to {last}")
    return grids
