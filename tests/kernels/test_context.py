"""The context code of ternary planes: exact, bounded, near the entropy where there is nothing to learn, and closed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import context, popcount

WHOLE = [(0, 40, 25, 25, 1, 0)]
TURNED = [(0, 40, 25, 1, 40, 0)]
SEVERAL = [(0, 1, 1, 1, 1, 1), (1, 30, 8, 8, 1, 0), (241, 90, 5, 1, 90, 0), (691, 309, 1, 1, 1, 2)]


def planes(numel: int, density: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.packbits(rng.random(numel) < density, bitorder="little")
    return mask, np.packbits(rng.random(popcount(mask)) < 0.5, bitorder="little")


def grids(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, context.GRID)


@pytest.mark.parametrize("rows", [WHOLE, TURNED, SEVERAL], ids=["whole", "turned", "several"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("expected", [1e-9, 0.2, 1.0])
def test_round_trip(rows: list[tuple[int, ...]], density: float, expected: float) -> None:
    mask, signs = planes(1000, density)
    before = mask.copy(), signs.copy()
    stream = context.encode(mask, signs, 1000, grids(rows), expected)
    came = context.decode(stream, 1000, grids(rows), expected)
    assert all(np.array_equal(a, b) for a, b in zip(came, (mask, signs), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, (mask, signs), strict=True))
    assert stream.size <= context.most_bytes(1000)


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 66, 200, 3000])
def test_votes_reach_as_far_as_the_window_and_no_further(columns: int) -> None:
    for density in (0.2, 1.0):
        mask, signs = planes(6000, density)
        for grid in (
            [(0, 6000 // columns, columns, columns, 1, 0)],
            [(0, 6000 // columns, columns, 1, 6000 // columns, 0)],
        ):
            mask[6000 // columns * columns // 8 :] = 0
            signs = planes(6000, density)[1][: (popcount(mask) + 7) // 8]
            if popcount(mask) & 7:
                signs[-1] &= (1 << (popcount(mask) & 7)) - 1
            stream = context.encode(mask, signs, 6000, grids(grid), density)
            came = context.decode(stream, 6000, grids(grid), density)
            assert all(np.array_equal(a, b) for a, b in zip(came, (mask, signs), strict=True))


@given(st.binary(max_size=80), st.sampled_from([WHOLE, TURNED, SEVERAL]), st.sampled_from([0.01, 0.5, 1.0]))
def test_random_bytes_are_the_code_of_what_they_say_or_refused(
    data: bytes, rows: list[tuple[int, ...]], density: float
) -> None:
    stream = np.frombuffer(data, np.uint8)
    try:
        mask, signs = context.decode(stream, 1000, grids(rows), density)
    except PayloadError as error:
        assert error.defect == Defect.STREAM
    else:
        assert np.array_equal(context.encode(mask, signs, 1000, grids(rows), density), stream)


def test_every_truncation_extension_and_flipped_bit_is_another_vector_or_refused() -> None:
    mask, signs = planes(1000, 0.1)
    stream = context.encode(mask, signs, 1000, grids(SEVERAL), 0.1)
    others = [stream[:size] for size in range(stream.size)] + [np.append(stream, np.uint8(b)) for b in (0, 1, 255)]
    for other in others:
        with pytest.raises(PayloadError) as caught:
            context.decode(other, 1000, grids(SEVERAL), 0.1)
        assert caught.value.defect == Defect.STREAM
    for bit in range(8 * stream.size):
        flipped = stream.copy()
        flipped[bit >> 3] ^= 1 << (bit & 7)
        try:
            came = context.decode(flipped, 1000, grids(SEVERAL), 0.1)
        except PayloadError as error:
            assert error.defect == Defect.STREAM
        else:
            assert np.array_equal(context.encode(*came, 1000, grids(SEVERAL), 0.1), flipped)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("columns", [1, 8, 64, 512])
def test_where_there_is_nothing_to_learn_little_is_lost(density: float, columns: int) -> None:
    numel = 1 << 18
    mask, signs = planes(numel, density)
    k = popcount(mask) / numel
    floor = numel * (k - (k * np.log2(k) + (1 - k) * np.log2(1 - k) if k < 1 else 0.0))
    stream = context.encode(mask, signs, numel, grids([(0, numel // columns, columns, columns, 1, 0)]), density)
    assert 8 * stream.size <= (1.02 if density < 0.05 else 1.01) * floor


def test_no_planes_take_more_than_the_bound() -> None:
    """Each coordinate is what the model expected least, by what it has learned from the same before."""
    numel = 4000
    for period in (1, 7, 500, 2000):
        ones = np.arange(numel) // period % 2 == 0
        mask = np.packbits(ones, bitorder="little")
        signs = np.packbits(np.arange(ones.sum()) // period % 2 == 0, bitorder="little")
        for density in (1e-6, 1.0):
            stream = context.encode(mask, signs, numel, grids([(0, numel, 1, 1, 1, 0)]), density)
            assert stream.size <= context.most_bytes(numel)
    assert 8 * context.most_bytes(numel) >= 19.02 * numel + 16 > 8 * context.most_bytes(numel) - numel


def test_families_share_what_they_learn() -> None:
    def size(families: tuple[int, ...]) -> int:
        rows = [(6400 * i, 800, 8, 8, 1, family) for i, family in enumerate(families)]
        rng = np.random.default_rng(1)
        dense = rng.random((6400, 1)) < 0.1
        kept = (rng.random((6400, 8)) < np.where(dense, 0.9, 0.01)).reshape(-1)
        mask = np.packbits(kept, bitorder="little")
        signs = np.packbits(np.zeros(kept.sum(), bool), bitorder="little")
        return int(context.encode(mask, signs, 51_200, grids(rows), 0.1).size)

    assert size((0,) * 8) < 0.99 * size(tuple(range(8)))


@pytest.mark.parametrize(
    "row",
    [(0, 40, 26, 26, 1, 0), (0, 40, 25, 1, 41, 0), (-1, 1, 1, 1, 1, 0), (0, 2, 2, -1, 1, 0), (1000, 1, 1, 1, 1, 0)],
)
def test_a_grid_that_reaches_outside_is_refused(row: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="grids: expected coordinates from 0 to 999"):
        context.decode(np.zeros(9, np.uint8), 1000, grids([row]), 0.5)


def test_planes_that_do_not_fit_are_refused() -> None:
    mask, signs = planes(1000, 0.1)
    for wrong in ((mask[:-1], signs), (mask, signs[:-1]), (mask, np.append(signs, np.uint8(0)))):
        with pytest.raises(ValueError, match="planes: expected a mask of 1000 bits"):
            context.encode(*wrong, 1000, grids(WHOLE), 0.1)
