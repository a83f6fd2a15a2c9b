"""What holds for every strategy, but for the laws that its definition breaks; `examples.Example` lists those."""

import pickle
from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

from fedpeft import strategies
from fedpeft.strategies import NAMES, Strategy, Update
from fedpeft.strategies.by_slot import BySlot
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import EXAMPLES, SPACE, merged, updates

every_strategy = pytest.mark.parametrize("strategy", [e.strategy for e in EXAMPLES], ids=repr)
several = pytest.mark.parametrize("clients", [9, 31])


def every_strategy_that_keeps(law):
    return pytest.mark.parametrize("strategy", [e.strategy for e in EXAMPLES if law not in e.breaks], ids=repr)


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_every_public_strategy_is_held_to_the_laws():
    known = {e.strategy for e in EXAMPLES}
    kinds = {kind for kind in NAMES.values() if isinstance(kind, type)}
    assert {type(strategy) for strategy in known} == {*kinds, BySlot}
    assert len(known) == len(EXAMPLES)
    for strategy in known - {e for e in known if isinstance(e, BySlot)}:
        for name, hint in get_type_hints(type(strategy)).items():
            if get_origin(hint) is Literal:
                assert {getattr(other, name) for other in known if type(other) is type(strategy)} == {*get_args(hint)}
    laws = {"alone", "between", "scale", "split", "proportion", "weightless", "order", "nothing", "huge"}
    assert all(e.breaks <= laws for e in EXAMPLES)


@every_strategy
def test_repr_is_the_expression(strategy):
    assert strategies.parse(repr(strategy)) == strategy == pickle.loads(pickle.dumps(strategy))
    assert hash(strategies.parse(repr(strategy))) == hash(strategy)
    assert isinstance(strategy, Strategy)


@every_strategy
@several
@pytest.mark.parametrize("kind", ["normal", "ternary"])
def test_a_merge_is_a_finite_float32_delta_and_the_same_bits_again(strategy, clients, kind):
    cohort = updates(clients, kind)
    before = [u.delta.clone() for u in cohort]
    one, other = merged(strategy, cohort), merged(strategy, updates(clients, kind))
    assert one.dtype == torch.float32 and one.shape == (SPACE.numel,) and torch.isfinite(one).all()
    assert torch.equal(one, other)
    one.add_(1)
    assert all(torch.equal(u.delta, kept) for u, kept in zip(cohort, before, strict=True))
    assert torch.equal(merged(strategy, cohort), other)


@every_strategy_that_keeps("huge")
@several
def test_huge_deltas_stay_finite(strategy, clients):
    assert torch.isfinite(merged(strategy, updates(clients, "huge"))).all()


@every_strategy_that_keeps("alone")
@pytest.mark.parametrize("weight", [1e-30, 1.0, 12345.678, 1e9])
def test_one_client_in_gives_its_own_delta_back(strategy, weight):
    one = replace(updates(1)[0], weight=weight)
    least = max(1, strategy.least)
    assert close(merged(strategy, [one] * least), one.delta)
    assert close(merged(strategy, [one] * (least + 6)), one.delta)


@every_strategy_that_keeps("order")
@several
@without_type_checks()
def test_the_order_of_clients_does_not_matter(strategy, clients):
    cohort = updates(clients)
    for seed in range(2):
        shuffled = [cohort[i] for i in np.random.default_rng(seed).permutation(clients)]
        assert close(merged(strategy, shuffled), merged(strategy, cohort))


@every_strategy
@pytest.mark.parametrize("weight", [0, 0.0, -1.0, float("nan"), float("inf")])
@without_type_checks()
def test_a_weight_of_zero_is_refused(strategy, weight):
    with pytest.raises(ValueError, match=f"a weight must be positive and finite, got {weight}"):
        merged(strategy, [*updates(9), Update(torch.ones(SPACE.numel), weight)])


@every_strategy_that_keeps("weightless")
def test_a_weight_of_almost_zero_is_absence(strategy):
    cohort = updates(9)
    almost = merged(strategy, [*cohort, replace(cohort[0], sent=torch.ones(SPACE.numel), weight=1e-300)])
    assert close(almost, merged(strategy, cohort))


@every_strategy
@pytest.mark.parametrize(
    "shape", [(), (1,), (SPACE.numel - 1,), (SPACE.numel + 1,), (1, SPACE.numel), (SPACE.numel, 1)]
)
@without_type_checks()
def test_a_delta_of_another_size_is_refused(strategy, shape):
    with pytest.raises(ValueError, match=rf"expected a delta of shape \({SPACE.numel},\), got \("):
        merged(strategy, [*updates(9), Update(torch.zeros(shape))])


@every_strategy
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@without_type_checks()
def test_a_delta_of_another_type_is_refused(strategy, kind):
    with pytest.raises(ValueError, match=rf"expected a delta of torch.float32, got {kind}: merge its .float\(\)"):
        merged(strategy, [replace(u, sent=u.delta.to(kind)) for u in updates(9)])


@every_strategy
@without_type_checks()
def test_weights_whose_sum_would_overflow_are_refused(strategy):
    with pytest.raises(
        ValueError, match=r"a weight must be at most 1e\+100, so that sums stay finite, got 1e\+308: div"
    ):
        merged(strategy, [replace(u, weight=1e308) for u in updates(9)])


@every_strategy_that_keeps("proportion")
@without_type_checks()
def test_the_heaviest_weights_count_as_others_do(strategy):
    heaviest = merged(strategy, [replace(u, weight=1e100) for u in updates(9)])
    assert close(heaviest, merged(strategy, [replace(u, weight=1.0) for u in updates(9)]))


@every_strategy
def test_too_few_updates_are_refused(strategy):
    with pytest.raises(ValueError, match="nothing to merge|merges at least"):
        merged(strategy, updates(strategy.least)[: strategy.least - 1])


@every_strategy_that_keeps("proportion")
@without_type_checks()
def test_only_the_proportion_of_weights_counts(strategy):
    cohort = updates(9)
    for factor in (2.0**-20, 8.0, 3.7):
        scaled = merged(strategy, [replace(u, weight=u.weight * factor) for u in cohort])
        assert close(scaled, merged(strategy, cohort))


def tied(weights):
    """On every other coordinate 1 and 2 vote against 3; on the rest all agree."""
    x = updates(1)[0].delta
    turned = torch.where(torch.arange(SPACE.numel) % 2 == 0, -x, x)
    return [replace(u, sent=s, weight=w) for u, s, w in zip(updates(9), 3 * [x, x, turned], 3 * weights, strict=True)]


@every_strategy_that_keeps("proportion")
@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3], [0.3, 0.6, 0.9]], ids=repr)
@without_type_checks()
def test_votes_that_tie_in_whole_numbers_tie_in_fractions(strategy, weights):
    whole = merged(strategy, tied([1.0, 2.0, 3.0]))
    assert torch.allclose(merged(strategy, tied(weights)), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@every_strategy_that_keeps("split")
@without_type_checks()
def test_a_weight_of_k_is_k_clients(strategy):
    cohort = [replace(u, weight=1 + u.weight % 7) for u in updates(9, "integers")]
    apart = [replace(u, weight=1.0) for u in cohort for _ in range(int(u.weight))]
    assert close(merged(strategy, cohort), merged(strategy, apart))


@every_strategy_that_keeps("scale")
@pytest.mark.parametrize("kind", ["normal", "ternary"])
@without_type_checks()
def test_scale_and_sign_commute(strategy, kind):
    cohort = updates(9, kind)
    for factor in (-1.0, 4.0, -0.5):
        scaled = merged(strategy, [replace(u, sent=u.delta * factor) for u in cohort])
        assert close(scaled, merged(strategy, cohort) * factor)


@every_strategy_that_keeps("nothing")
@several
def test_nothing_stays_nothing(strategy, clients):
    still = merged(strategy, [replace(u, sent=torch.zeros(SPACE.numel)) for u in updates(clients)])
    assert torch.allclose(still, torch.zeros(SPACE.numel), atol=1e-5)


@every_strategy_that_keeps("between")
@several
@pytest.mark.parametrize("kind", ["normal", "ternary"])
def test_a_merge_lies_between_the_clients_and_zero(strategy, clients, kind):
    cohort = updates(clients, kind)
    stacked = torch.stack([u.delta for u in cohort] + [torch.zeros(SPACE.numel)])
    slack = 1 + 1e-5
    found = merged(strategy, cohort)
    assert (found <= stacked.amax(0) * slack).all() and (found >= stacked.amin(0) * slack).all()
