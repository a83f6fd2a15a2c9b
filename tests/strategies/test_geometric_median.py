"""The geometric median: what the iteration is, where it leads, and what does not move it."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Broadcast, Context, Fold, GeometricMedian, Mean, Update
from tests.strategies.examples import SPACE, updates


def rows(cohort):
    return np.stack([u.delta.double().numpy() for u in cohort]), np.array([u.weight for u in cohort])


def weiszfeld(x, weights, norm, iterations, epsilon):
    v, smoothing = np.zeros(x.shape[1]), norm
    for _ in range(iterations):
        beta = weights / np.maximum(np.linalg.norm(x - v, axis=1), smoothing)
        v, smoothing = (beta @ x) / beta.sum(), epsilon * norm
    return v


def first_norm(cohort):
    fold = Fold(GeometricMedian(), Context(SPACE))
    fold.accumulate(*cohort)
    found = fold.finalize()
    assert isinstance(found, Broadcast)
    return float(found.told["norm"])


@pytest.mark.parametrize("clients", [1, 2, 9, 128])
@pytest.mark.parametrize(("iterations", "epsilon"), [(1, 1e-6), (2, 0.1), (8, 1e-6)])
def test_it_is_weiszfelds_iteration(clients, iterations, epsilon):
    cohort = updates(clients)
    expected = weiszfeld(*rows(cohort), first_norm(cohort), iterations, epsilon)
    found = GeometricMedian(iterations, epsilon).merge(cohort, Context(SPACE))
    assert np.allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e20])
def test_the_first_pass_finds_the_weighted_median_norm_to_a_quarter_of_an_octave(size):
    cohort = [Update(u.delta * size, u.weight) for u in updates(31)]
    x, weights = rows(cohort)
    norms = np.linalg.norm(x, axis=1)
    order = norms.argsort()
    middle = norms[order][np.searchsorted(weights[order].cumsum(), weights.sum() / 2)]
    assert middle <= first_norm(cohort) * (1 + 1e-9) and first_norm(cohort) <= middle * 2**0.25 * (1 + 1e-9)


def test_no_other_point_has_a_lesser_sum_of_distances():
    cohort = updates(9)
    x, weights = rows(cohort)

    def distances(v):
        return weights @ np.linalg.norm(x - v, axis=1)

    found = GeometricMedian(iterations=200).merge(cohort, Context(SPACE)).double().numpy()
    draw = np.random.default_rng(0)
    for length in (1e-2, 1e-1, 1.0):
        for _ in range(50):
            step = draw.standard_normal(len(found))
            assert distances(found) <= distances(found + length * step / np.linalg.norm(step)) + 1e-9


def test_on_a_line_it_is_the_median():
    ctx = Context(Space((Slot("a", (1,), "head"),)))
    cohort = [Update(torch.tensor([v])) for v in (-3.0, 1.0, 2.0, 50.0, 1e6)]
    assert float(GeometricMedian(iterations=100).merge(cohort, ctx)) == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize("size", [1e2, 1e6, 1e30])
def test_huge_updates_move_it_by_less_than_the_honest_ones_differ(size):
    """With a share a of the weight hostile: at most 2 (1 - a) / (1 - 2 a) times the farthest honest one's distance."""
    cohort = [Update(u.delta) for u in updates(10)]
    attacked = [Update(torch.full((SPACE.numel,), size))] * 3 + cohort[3:]
    found = GeometricMedian().merge(attacked, Context(SPACE))
    centre = Mean().merge(cohort[3:], Context(SPACE))
    spread = max(float((u.delta - centre).norm()) for u in cohort[3:])
    assert (found - centre).norm() < 2 * 0.7 / 0.4 * spread
    assert Mean().merge(attacked, Context(SPACE)).norm() > 0.29 * size * SPACE.numel**0.5


def test_updates_of_almost_nothing_do_not_decide_where_it_begins():
    shared = torch.full((SPACE.numel,), 2.0)
    cohort = [Update(torch.full((SPACE.numel,), 1e-9))] * 4 + [Update(shared + u.delta / 9) for u in updates(6)]
    found = GeometricMedian().merge(cohort, Context(SPACE))
    assert (found - shared).norm() < 0.5 * shared.norm()


def test_where_most_send_nothing_it_is_nothing():
    cohort = [Update(torch.zeros(SPACE.numel), 99.0)] * 5 + updates(2)
    assert GeometricMedian().merge(cohort, Context(SPACE)).norm() < 1e-6


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        GeometricMedian(0)
    for epsilon in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"epsilon must lie in \(0, 1\], got {epsilon}"):
            GeometricMedian(epsilon=epsilon)
