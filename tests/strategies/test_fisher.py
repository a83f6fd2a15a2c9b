"""The Fisher-weighted mean, by its formula."""

import numpy as np
import pytest
import torch

from fedpeft.strategies import Context, Fisher, Fold, Mean, Update
from tests.strategies.examples import SPACE, updates


def by_the_formula(cohort, floor, normalise):
    """Matena and Raffel, 2021, with a weight of at least the floor, coordinate by coordinate."""
    out = []
    for j in range(SPACE.numel):
        above = below = 0.0
        for update in cohort:
            fisher = update.statistics["fisher"].numpy().astype(np.float64)
            scale = np.sqrt((fisher**2).sum()) if normalise and fisher.any() else 1.0
            weight = update.weight * max(fisher[j] / scale, floor)
            above += weight * float(update.delta[j])
            below += weight
        out.append(above / below)
    return np.array(out)


@pytest.mark.parametrize("clients", [1, 2, 9, 128])
@pytest.mark.parametrize("floor", [1e-6, 0.05])
@pytest.mark.parametrize("normalise", [True, False])
def test_it_is_the_formula(clients, floor, normalise):
    cohort = updates(clients)
    merged = Fisher(floor, normalise).merge(cohort, Context(SPACE))
    assert np.allclose(merged.numpy(), by_the_formula(cohort, floor, normalise), rtol=1e-5, atol=1e-7)


def test_on_deltas_it_is_what_it_is_on_adapters():
    start = torch.linspace(-2, 2, SPACE.numel)
    cohort = updates(5)
    adapters = [Update(start + u.delta, u.weight, u.statistics) for u in cohort]
    expected = by_the_formula(adapters, 1e-6, normalise=True) - start.numpy()
    merged = Fisher().merge(cohort, Context(SPACE, start))
    assert np.allclose(merged.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 3e38])
def test_sites_that_are_alike_in_what_they_know_give_the_mean(normalise, value):
    alike = {"fisher": torch.full((SPACE.numel,), value)}
    cohort = [Update(u.delta, u.weight, alike) for u in updates(7)]
    merged = Fisher(normalise=normalise).merge(cohort, Context(SPACE))
    assert torch.allclose(merged, Mean().merge(cohort, Context(SPACE)), rtol=1e-5, atol=1e-7)


def test_a_huge_claim_has_all_the_say_unless_it_is_normalised():
    honest = updates(8)
    liar = Update(torch.full((SPACE.numel,), 50.0), 1.0, {"fisher": torch.full((SPACE.numel,), 1e30)})
    taken, kept = (Fisher(normalise=n).merge([*honest, liar], Context(SPACE)) for n in (False, True))
    assert torch.allclose(taken, liar.delta, rtol=1e-4)
    assert float(kept.median()) < 10


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_that_is_none_is_refused(floor):
    with pytest.raises(ValueError, match="floor must lie in"):
        Fisher(floor)


@pytest.mark.parametrize("statistics", [{}, {"gram": torch.ones(18)}, {"fisher": torch.ones(SPACE.numel - 1)}])
def test_an_update_without_its_statistic_is_refused_and_leaves_no_trace(statistics):
    fold = Fold(Fisher(), Context(SPACE))
    with pytest.raises(ValueError, match="expected an update with the statistic 'fisher' of shape"):
        fold.accumulate(*updates(2), Update(torch.ones(SPACE.numel), 1.0, statistics))
    assert not fold.total
