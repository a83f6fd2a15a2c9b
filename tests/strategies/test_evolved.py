"""Weights searched for on objectives whose best weights are known."""

import pytest
import torch

from fedpeft.strategies import TIES, Context, Mean, Update, optimise_weights
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, START, updates

CTX = Context(SPACE)


def distance(target):
    """|adapter - target|^2."""
    return lambda adapter: float((adapter - target).double().square().sum())


def merged(cohort, weights, strategy=Mean()):  # noqa: B008
    return strategy.merge([Update(u.delta, w) for u, w in zip(cohort, weights, strict=True)], CTX)


@pytest.mark.parametrize(("method", "evaluations", "near"), [("model", 150, 1e-3), ("evolution", 3000, 0.03)])
@without_type_checks()
def test_the_best_weights_of_a_quadratic_are_found(method, evaluations, near):
    cohort, best = updates(4), (0.4, 0.3, 0.2, 0.1)
    found = optimise_weights(cohort, CTX, distance(merged(cohort, best)), evaluations=evaluations, method=method)
    assert found.weights == pytest.approx(best, abs=near)
    assert sum(found.weights) == pytest.approx(1.0)
    assert found.evaluations <= evaluations
    assert torch.equal(found.delta, merged(cohort, found.weights))
    assert found.value == distance(merged(cohort, best))(found.delta)


@pytest.mark.parametrize("method", ["model", "evolution"])
def test_the_same_seed_finds_the_same_and_never_worse_than_it_began(method):
    cohort = updates(6)
    objective = distance(torch.ones(SPACE.numel))
    one, other = (optimise_weights(cohort, CTX, objective, evaluations=60, method=method, seed=3) for _ in "ab")
    assert one.weights == other.weights and one.value == other.value and torch.equal(one.delta, other.delta)
    assert one.value <= min(objective(merged(cohort, [1.0] * 6)), objective(Mean().merge(cohort, CTX)))


def test_another_seed_evolves_otherwise():
    objective = distance(torch.ones(SPACE.numel))
    found = {
        optimise_weights(updates(6), CTX, objective, evaluations=90, method="evolution", seed=seed).weights
        for seed in range(3)
    }
    assert len(found) == 3


def test_a_harmful_update_loses_its_weight():
    good = updates(3)
    harmful = Update(-40 * good[0].delta, 500.0)
    target = Mean().merge(good, CTX)
    found = optimise_weights([*good, harmful], CTX, distance(target), evaluations=400)
    assert found.weights[3] < 1e-3 and found.value < 0.05 * distance(target)(torch.zeros(SPACE.numel))


def test_any_strategy_that_heeds_weights_is_served():
    cohort, strategy = updates(5), TIES(trim="none")
    objective = distance(merged(cohort, (0.5, 0.2, 0.1, 0.1, 0.1), strategy))
    found = optimise_weights(cohort, CTX, objective, strategy, evaluations=150, method="evolution")
    assert found.value < objective(strategy.merge(cohort, CTX))
    assert torch.equal(found.delta, merged(cohort, found.weights, strategy))


def test_the_objective_is_of_an_adapter():
    seen = []
    cohort = updates(1)
    optimise_weights(cohort, Context(SPACE, START), lambda adapter: seen.append(adapter) or 0.0, evaluations=2)
    assert len(seen) == 2 and torch.allclose(seen[0], START + cohort[0].delta)


def test_evaluations_are_never_more_and_adapters_that_are_no_good_are_passed_over():
    seen = []

    def objective(adapter):
        seen.append(1)
        return float("nan") if len(seen) % 2 else float(adapter.square().sum())

    for method in ("model", "evolution"):
        seen.clear()
        found = optimise_weights(updates(3), CTX, objective, evaluations=31, method=method)
        assert len(seen) == found.evaluations <= 31
    with pytest.raises(ValueError, match="the objective was finite for none of 2 merges"):
        optimise_weights(updates(3), CTX, lambda adapter: float("inf"), evaluations=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimise_weights([], CTX, float), "merges at least 1 updates, got 0"),
        (lambda: optimise_weights(updates(2), CTX, float, evaluations=1), "evaluations must be at least 2, got 1"),
        (lambda: optimise_weights(updates(2), CTX, float, method="cma"), "method must be .* got 'cma'"),
        (lambda: optimise_weights(updates(2), CTX, float, seed=-1), "seed must be at least 0, got -1"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_cannot_be_merged_is_told_before_anything_is(weight):
    cohort = [*updates(2), Update(updates(1)[0].delta, weight)]
    with pytest.raises(ValueError, match="a weight must be positive and finite, got"):
        optimise_weights(cohort, CTX, lambda adapter: pytest.fail("nothing may be merged"))
    with pytest.raises(ValueError, match="expected a delta of shape"):
        optimise_weights([Update(torch.zeros(3))], CTX, lambda adapter: pytest.fail("nothing may be merged"))
