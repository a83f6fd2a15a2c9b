"""Products with directions of signs, against the same written out as a matrix."""

import numpy as np
import pytest

from fedpeft import kernels

DRAW = np.random.default_rng(0)


def directions(words, n):
    """float64[k, n] of +1 and -1."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, 32 * -(-n // 32))
    return 1 - 2.0 * bits[:, :n]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 2047, 2048, 2049, 10_000])
@pytest.mark.parametrize("k", [0, 1, 7])
def test_both_products(n, k):
    words = DRAW.integers(0, 1 << 32, k * -(-n // 32), dtype=np.uint32)
    matrix = directions(words, n)
    x = DRAW.integers(-50, 50, n).astype(np.float32)
    assert np.array_equal(kernels.signed_sums(x, words), matrix @ x)
    c, out = DRAW.integers(-50, 50, k).astype(np.float64), x.copy()
    kernels.add_signed(c, words, out)
    assert np.array_equal(out, x + c @ matrix)


def test_sums_are_as_exact_as_their_result_can_be():
    x = DRAW.standard_normal(1_000_000, np.float32)
    words = DRAW.integers(0, 1 << 32, x.size // 32, dtype=np.uint32)
    exact = float(directions(words, x.size)[0] @ x.astype(np.float64))
    assert abs(kernels.signed_sums(x, words)[0] - exact) < 1e-6 * np.linalg.norm(x)


@pytest.mark.parametrize(("n", "words", "c"), [(33, 3, 1), (0, 1, 1), (33, 4, 1)])
def test_directions_that_do_not_fit(n, words, c):
    with pytest.raises(ValueError, match=r"words: expected directions of|c: expected one number for each of 2"):
        kernels.add_signed(np.zeros(c), np.zeros(words, np.uint32), np.zeros(n, np.float32))
