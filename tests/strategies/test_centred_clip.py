"""Centred clipping as the paper writes it, and the bound on what one site moves."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import CentredClip, Context, Mean, Update
from tests.strategies.examples import SPACE, updates


def centred_clip(x, radius, iterations):
    v = np.zeros(x.shape[1])
    for _ in range(iterations):
        v = v + np.mean([(row - v) * min(1.0, radius / np.linalg.norm(row - v)) for row in x], axis=0)
    return v


@pytest.mark.parametrize("clients", [1, 2, 10, 128])
@pytest.mark.parametrize(("radius", "iterations"), [(0.5, 1), (2.0, 4), (1e6, 1)])
def test_it_is_the_papers(clients, radius, iterations):
    x = np.stack([u.delta.double().numpy() for u in updates(clients)])
    found = CentredClip(radius, iterations).merge(updates(clients), Context(SPACE))
    assert np.allclose(found.numpy(), centred_clip(x, radius, iterations), rtol=1e-5, atol=1e-6)


def test_a_wide_radius_is_the_plain_mean_and_repeating_leads_to_it():
    cohort = [Update(u.delta) for u in updates(9)]
    mean = Mean().merge(cohort, Context(SPACE))
    assert torch.allclose(CentredClip(1e3).merge(cohort, Context(SPACE)), mean, rtol=1e-5, atol=1e-6)
    near = [(CentredClip(3.0, n).merge(cohort, Context(SPACE)) - mean).norm() for n in (1, 4, 40)]
    assert near[0] > near[1] > near[2]


def test_by_hand():
    """From 0, (3, 4) is clipped to 1 and (0, 0.5) is not; from (0.3, 0.65) both ways are shortened or kept again."""
    ctx = Context(Space((Slot("a", (2,), "head"),)))
    cohort = [Update(torch.tensor([3.0, 4.0]), 7.0), Update(torch.tensor([0.0, 0.5]))]
    assert torch.allclose(CentredClip(1.0).merge(cohort, ctx), torch.tensor([0.3, 0.65]))
    first = np.array([2.7, 3.35]) / np.hypot(2.7, 3.35)
    expected = np.array([0.3, 0.65]) + (first + np.array([-0.3, -0.15])) / 2
    assert np.allclose(CentredClip(1.0, 2).merge(cohort, ctx).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("size", [10.0, 1e30])
def test_hostile_sites_move_it_by_no_more_than_the_bound(iterations, size):
    cohort, rule = updates(10), CentredClip(2.0, iterations)
    before = rule.merge(cohort, Context(SPACE))
    for hostile in (1, 3):
        attacked = [Update(torch.full((SPACE.numel,), size), 1e9)] * hostile + cohort[hostile:]
        moved = (rule.merge(attacked, Context(SPACE)) - before).norm()
        assert 0 < moved <= 2 * iterations * 2.0 * hostile / 10
        assert Mean().merge(attacked, Context(SPACE)).norm() > 0.9 * size * SPACE.numel**0.5


def test_wrong_arguments_are_refused():
    for radius in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"radius must be positive and finite, got {radius}"):
            CentredClip(radius)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        CentredClip(1.0, 0)
