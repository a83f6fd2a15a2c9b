"""Outer products are added one after the other."""

import numpy as np
import pytest

from fedpeft import kernels

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 50), (50, 3), (16, 1000), (0, 4), (4, 0)])
@pytest.mark.parametrize("r", [0, 1, 2, 9])
def test_the_order_is_that_of_the_ranks(m, n, r):
    left, right = DRAW.standard_normal((m, r)).astype(np.float32), DRAW.standard_normal((r, n)).astype(np.float32)
    out = np.ones(m * n, np.float32)
    kernels.add_outer(left, right, out)
    expected = np.ones((m, n), np.float32)
    for i in range(r):
        expected = expected + left[:, i, None] * right[i]
    assert out.tobytes() == expected.tobytes()
    strided = np.ones(m * n, np.float32)
    kernels.add_outer(np.asfortranarray(left), np.asfortranarray(right), strided)
    assert strided.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("left", "right", "n"), [((2, 3), (2, 3), 9), ((2, 3), (3, 2), 5), ((6,), (6,), 36)])
def test_sizes_that_do_not_fit(left, right, n):
    with pytest.raises(ValueError, match=rf"expected \(m, r\) and \(r, n\) for {n} numbers"):
        kernels.add_outer(np.zeros(left, np.float32), np.zeros(right, np.float32), np.zeros(n, np.float32))
