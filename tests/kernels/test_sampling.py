"""What the sampling kernels and the cosine transform refuse; their laws stand with the codecs that use them."""

import numpy as np
import pytest

from fedpeft.kernels import cosine_blocks, keep_by_rank, put_strata, take_strata

X = np.arange(1, 13, dtype=np.float32)
ZERO, FOUR = np.zeros(1, np.int64), np.full(4, 0.5, np.float32)


def test_strata_are_put_back_where_they_were_taken():
    rng = np.random.default_rng(0)
    for k in range(1, 13):
        words = rng.integers(0, 1 << 32, k + 1, dtype=np.uint32)
        taken, out = take_strata(X, words), np.zeros_like(X)
        put_strata(taken, words, out)
        assert len(set(taken)) == k and set(out[out != 0]) == set(taken) and np.all((out == 0) | (out == X))


@pytest.mark.parametrize("count", [0, 1, 14])
def test_more_draws_than_coordinates(count):
    with pytest.raises(ValueError, match="words: expected one, and one for each of 1 to 12 draws"):
        take_strata(X, np.zeros(count, np.uint32))
    with pytest.raises(ValueError, match="words: expected one, and one for each of 1 to 12 draws"):
        put_strata(np.zeros(max(0, count - 1), np.float32), np.zeros(count, np.uint32), X.copy())


@pytest.mark.parametrize(("row", "least", "most", "words", "first", "message"), [
    (5, 0.1, 0.9, 12, 0, "x, row, words: expected whole rows of 5 and 12 words, got 12"),
    (0, 0.1, 0.9, 12, 0, "x, row, words: expected whole rows of 0"),
    (4, 0.1, 0.9, 11, 0, "x, row, words: expected whole rows of 4 and 12 words, got 11"),
    (4, 0.0, 0.9, 12, 0, "least, most: expected 0 < least <= most <= 1, got 0.0 and 0.9"),
    (4, 0.5, 1.1, 12, 0, "least, most: expected 0 < least <= most <= 1, got 0.5 and 1.1"),
    (4, 0.5, 0.4, 12, 0, "least, most: expected 0 < least <= most <= 1, got 0.5 and 0.4"),
    (4, 0.1, 0.9, 12, 53, "mask: expected 65 bits, got 64"),
    (4, 0.1, 0.9, 12, -1, "mask: expected 11 bits, got 64"),
])  # fmt: skip
def test_ranks_of_something_else(row, least, most, words, first, message):
    with pytest.raises(ValueError, match=message):
        keep_by_rank(X, row, least, most, np.zeros(words, np.uint32), np.zeros(1, np.uint64), first)


def test_a_mask_is_set_where_it_is_told_and_nowhere_else():
    mask = np.zeros(2, np.uint64)
    values = keep_by_rank(X, 4, 1.0, 1.0, np.zeros(12, np.uint32), mask, 60)
    assert np.array_equal(values, X) and [int(m) for m in mask] == [0xF << 60, 0xFF]


@pytest.mark.parametrize(("starts", "blocks", "columns", "tall", "message"), [
    ([0], [9], 4, FOUR, "blocks: expected places of 2 x 2 numbers among 12"),
    ([-1], [0], 4, FOUR, "blocks: expected places of 2 x 2"),
    ([], [], 4, FOUR, "blocks: expected places of 2 x 2"),
    ([0, 2], [0], 4, FOUR, "blocks: expected places of 2 x 2"),
    ([7], [0], 4, FOUR, "starts: expected places of 2 x 2 numbers in rows of 4 among 12"),
    ([0], [0], 4, np.ones(3, np.float32), r"tall, wide: expected h \* h and w \* w numbers, w up to 4, got 3, 4"),
    ([0], [0], 1, FOUR, r"tall, wide: expected h \* h and w \* w numbers, w up to 1"),
])  # fmt: skip
@pytest.mark.parametrize("back", [False, True])
def test_blocks_that_lie_outside(starts, blocks, columns, tall, message, back):
    places = np.array(starts, np.int64), np.array(blocks, np.int64)
    with pytest.raises(ValueError, match=message):
        cosine_blocks(X, *places, columns, tall, FOUR, np.zeros_like(X), back=back)


def test_a_block_changes_nothing_beside_it():
    c = np.array([1, 1, 1, -1], np.float32)
    out = np.full_like(X, 7)
    cosine_blocks(X, np.array([5]), np.array([8]), 4, c, c, out)
    assert out.tolist() == [7] * 8 + [6 + 7 + 10 + 11, -2, -8, 0]
    again = np.full_like(X, 7)
    cosine_blocks(out, np.array([5]), np.array([8]), 4, c, c, again, back=True)
    assert again.tolist() == [7] * 5 + [24, 28, 7, 7, 40, 44, 7]
