"""Selection agrees with a full sort, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedpeft.kernels import all_finite, magnitude_threshold

TINY = np.float32(1e-45)
HUGE = np.finfo(np.float32).max


@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.data(),
)
def test_equals_sort(x: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, x.size))
    assert magnitude_threshold(x, k) == np.sort(np.abs(x))[x.size - k]


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(200, np.float32),
        np.full(200, -1.5, np.float32),
        np.array([TINY, -2 * TINY, 0, 3 * TINY, -0.0] * 40, np.float32),
        np.array([HUGE, -HUGE, TINY, 1, np.nextafter(HUGE, np.float32(0))] * 40, np.float32),
        1 + np.arange(200, dtype=np.float32) * np.finfo(np.float32).eps,
        np.random.default_rng(0).standard_normal(5000).astype(np.float32),
    ],
    ids=["zeros", "ties", "denormals", "huge", "neighbours", "normal"],
)
def test_every_rank(x: np.ndarray) -> None:
    ordered = np.sort(np.abs(x))[::-1]
    for k in {1, 2, 63, 64, 65, 199, 200, x.size // 2, x.size}:
        assert magnitude_threshold(x, k) == ordered[k - 1]


def test_ties_at_the_threshold_are_all_kept() -> None:
    x = np.array([0, 1, 1, -1, 2, 0], np.float32)
    threshold = magnitude_threshold(x, 2)
    assert threshold == 1
    assert np.count_nonzero((np.abs(x) >= threshold) & (x != 0)) == 4


@pytest.mark.parametrize("k", [0, -1, 4])
def test_refuses_rank_outside(k: int) -> None:
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        magnitude_threshold(np.ones(3, np.float32), k)


@pytest.mark.parametrize("x", [np.ones(3), np.ones((3, 1), np.float32)], ids=["float64", "matrix"])
def test_refuses_other_arrays(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="x: expected one dimension of float32"):
        magnitude_threshold(x, 1)


def test_strided_and_read_only_arrays_give_the_same() -> None:
    x = np.random.default_rng(1).standard_normal(400).astype(np.float32)
    expected = magnitude_threshold(x[::2].copy(), 17)
    x.flags.writeable = False
    assert magnitude_threshold(x[::2], 17) == expected


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, 7, 63, 99])
def test_all_finite(bad: float, at: int) -> None:
    x = np.full(100, HUGE, np.float32)
    assert all_finite(x)
    x[at] = bad
    assert not all_finite(x)
    assert all_finite(x[:0])
