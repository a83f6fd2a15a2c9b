"""Orthonormal rows span what they are made of, and spare ones stand in where that is too little."""

import numpy as np
import pytest

from fedpeft import kernels

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize(("r", "n"), [(1, 1), (1, 9), (4, 4), (5, 17), (16, 1000)])
@pytest.mark.parametrize("close", [1.0, 1e-4])
def test_rows_are_orthonormal_and_span_the_same(r, n, close):
    rows = DRAW.standard_normal((1, n)) + close * DRAW.standard_normal((r, n))
    found = kernels.orthonormal(rows, DRAW.standard_normal((r, n)))
    assert np.allclose(found @ found.T, np.eye(r), atol=1e-12)
    assert np.allclose(rows @ found.T @ found, rows, atol=1e-9)
    assert np.allclose(np.triu(found @ rows.T, 0), found @ rows.T, atol=1e-9)


def test_a_row_that_adds_nothing_is_replaced():
    rows, spare = DRAW.standard_normal((4, 20)), DRAW.standard_normal((4, 20))
    rows[2], rows[3] = 3 * rows[0] - rows[1], 0
    kept = rows.copy()
    found = kernels.orthonormal(rows, spare)
    assert np.array_equal(rows, kept)
    assert np.allclose(found @ found.T, np.eye(4), atol=1e-12)
    wanted = np.linalg.qr(np.stack([rows[0], rows[1], spare[2], spare[3]]).T).Q.T
    assert np.allclose(np.abs(found @ wanted.T), np.eye(4), atol=1e-9)
    nothing = kernels.orthonormal(np.zeros((4, 20)), spare)
    assert np.array_equal(nothing, kernels.orthonormal(spare, spare))


@pytest.mark.parametrize(("rows", "spare"), [((3, 2), (3, 2)), ((2, 3), (2, 4)), ((6,), (6,))])
def test_shapes_that_do_not_fit(rows, spare):
    with pytest.raises(ValueError, match=r"expected two of \(r, n\) with r <= n"):
        kernels.orthonormal(np.ones(rows), np.ones(spare))
