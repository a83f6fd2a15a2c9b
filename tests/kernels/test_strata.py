"""One number from each range."""

import numpy as np
import pytest

from fedpeft import kernels

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 0), (0, 5), (1, 1), (1, 10**12), (3, 10), (7, 7), (1000, 1001), (1000, 10**10)]
)
def test_numbers_lie_in_their_ranges(k, n):
    words = DRAW.integers(0, 1 << 32, 2 * k, dtype=np.uint32)
    edges = [i * n // k for i in range(k + 1)] if k else []
    keys = [int(low) >> 1 | int(high) << 31 for low, high in words.reshape(k, 2)]
    expected = [a + key % (b - a) for a, b, key in zip(edges, edges[1:], keys, strict=False)]
    assert kernels.stratified(words, n).tolist() == expected


def test_every_number_is_as_likely():
    words = DRAW.integers(0, 1 << 32, (20_000, 6), dtype=np.uint32)
    counts = np.bincount(np.concatenate([kernels.stratified(row, 12) for row in words]), minlength=12)
    assert abs(counts / 5000 - 1).max() < 0.07


def test_more_ranges_than_numbers():
    with pytest.raises(ValueError, match="at least one number for each of 3 ranges, got 2"):
        kernels.stratified(np.zeros(6, np.uint32), 2)
