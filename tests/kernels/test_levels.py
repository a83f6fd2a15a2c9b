"""Fitted levels against the best there are."""

import numpy as np
import pytest

from fedpeft.kernels import quantise_kept


def fit(values, m, counts=None, units=None):
    values = np.asarray(values, np.float32)
    counts = np.array([values.size] if counts is None else counts, np.int64)
    units = np.ones(counts.size) if units is None else np.array(units)
    codes, levels = quantise_kept(values, counts, units, m)
    assert np.array_equal(codes & 1, values < 0)
    return codes >> 1, levels, np.repeat(units, counts)


def loss(values, m, **more):
    index, levels, units = fit(values, m, **more)
    return float(((np.abs(np.float64(values)) - levels[index] * units) ** 2).sum())


def best(values, m):
    """The least squared error of all ways to cut the sorted magnitudes into m (dynamic programming)."""
    v = np.sort(np.abs(np.float64(values)))
    n, sums, squares = v.size, np.concatenate([[0], np.cumsum(v)]), np.concatenate([[0], np.cumsum(v * v)])
    i, j = np.triu_indices(n + 1, 1)
    cost = np.full((n + 1, n + 1), np.inf)
    cost[i, j] = squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / (j - i)
    least = cost[0]
    for _ in range(m - 1):
        least = (least[:, None] + cost).min(axis=0)
    return least[n]


DRAWS = {
    "tail of a normal": lambda rng: np.sort(np.abs(rng.standard_normal(6000)))[-300:] * rng.choice([-1, 1], 300),
    "exponential": lambda rng: rng.exponential(size=300),
    "uniform": lambda rng: rng.random(300) + 1,
    "student": lambda rng: rng.standard_t(3, size=300),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("m", "within"), [(1, 1.001), (2, 1.02), (4, 1.1), (8, 1.2)])
def test_close_to_the_best_there_are(name, m, within):
    ratios = [loss(v, m) / best(v, m) for seed in range(10) for v in [DRAWS[name](np.random.default_rng(seed))]]
    assert min(ratios) > 1 - 1e-6 and np.mean(ratios) < within


@pytest.mark.parametrize("m", [1, 2, 8, 128])
def test_every_value_takes_the_nearest_level(m):
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    index, levels, _ = fit(values, m)
    assert np.all(np.diff(levels) >= 0) and levels.size == m
    distance = np.abs(np.abs(np.float64(values))[:, None] - levels)
    assert np.allclose(distance[np.arange(5000), index], distance.min(axis=1), rtol=0, atol=1e-12)


def test_few_values_are_levels_themselves():
    assert loss([1, -2, 2, 1, 1], 2) < 1e-12 and loss([3, 3, -3], 4) < 1e-12
    codes, levels = quantise_kept(np.empty(0, np.float32), np.zeros(2, np.int64), np.ones(2), 4)
    assert codes.size == 0 and not levels.any()


def test_slots_count_by_the_square_of_their_unit():
    index, levels, _ = fit([1, 2, 0.03, 0.03], 1, counts=[2, 2], units=[1, 0.01])
    assert np.isclose(levels[0], (1 + 2 + 2 * 3 * 1e-4) / (2 + 2e-4)) and not index.any()
    alone = fit([0.5, -1.5, 3], 2)
    scaled = fit([0.5, -1.5, 3, 0.5 * 2**-9, -1.5 * 2**-9, 3 * 2**-9], 2, counts=[3, 3], units=[1, 2.0**-9])
    assert np.allclose(alone[1], scaled[1]) and scaled[0].tolist() == alone[0].tolist() * 2


def test_slots_too_faint_to_count():
    values = np.concatenate([np.full(50, 2.0), 2.0**-31 * np.array([1e-3, 1, 40, 1e3])])
    index, levels, _ = fit(values, 4, counts=[50, 4], units=[1, 2.0**-31])
    assert np.all(np.isfinite(levels)) and np.isclose(levels[index[:50]], 2).all()


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1.0, 1e38])
def test_any_magnitude_float32_has(scale):
    values = np.array([1, 2, 3], np.float32) * np.float32(scale)
    _, levels, _ = fit(values, 2, units=[float(values[1])])
    assert np.all(np.isfinite(levels)) and 0 < levels[0] <= 2 and levels[-1] <= 3.01


@pytest.mark.parametrize(
    ("counts", "units", "m"), [([2], [1.0], 1), ([3], [0.0], 1), ([1, 2], [1.0], 1), ([4, -1], [1, 1], 1)]
)
def test_numbers_that_do_not_fit(counts, units, m):
    with pytest.raises(ValueError, match="counts, units: expected 3 values in slots of positive units"):
        quantise_kept(np.ones(3, np.float32), np.array(counts, np.int64), np.array(units, np.float64), m)


@pytest.mark.parametrize("m", [0, 129])
def test_too_many_levels(m):
    with pytest.raises(ValueError, match=f"m: expected 1 to 128 levels, got {m}"):
        quantise_kept(np.ones(3, np.float32), np.array([3]), np.ones(1), m)
