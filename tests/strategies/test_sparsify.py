"""What DARE, DELLA and Breadcrumbs keep of an update, and how they scale it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import DARE, DELLA, TIES, Breadcrumbs, Context, Krum, Mean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, merged, updates

CTX = Context(SPACE, seed=3, round=5)
ROUNDS = 1000
EVERY = [DARE(Mean(), 0.3), DARE(Mean(), 0.3, "l1", "shared"), DELLA(Mean(), 0.5, 0.2), Breadcrumbs(Mean(), 0.3, 0.1)]


def sent(strategy, x, ctx=CTX):
    return strategy.before(Update(x), ctx).sent


def slots(x):
    return [x[a:b] for a, b in pairwise(SPACE.bounds) if b > a]


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_nothing_but_the_delta_is_changed_and_not_in_place(strategy):
    update = updates(1)[0]
    before = update.delta.clone()
    found = strategy.before(update, CTX)
    assert torch.equal(update.delta, before)
    assert (found.weight, found.statistics) == (update.weight, update.statistics)
    assert torch.equal(found.sent, sent(strategy, before))
    assert ((found.sent != 0) <= (before != 0)).all()
    assert torch.equal(strategy.before(Update(before.repeat(2)[: SPACE.numel]), CTX).sent, found.sent)


@pytest.mark.parametrize("strategy", EVERY, ids=repr)
def test_zeros_stay_zeros_and_one_number_is_a_slot(strategy):
    assert not sent(strategy, torch.zeros(SPACE.numel)).any()
    one = Space((Slot("a", (), "head"), Slot("b", (1, 1), "head"), Slot("c", (0, 3), "head")))
    found = sent(strategy, torch.tensor([2.0, -3.0]), Context(one))
    assert set(found.abs().tolist()) <= {0.0, 2.0, 3.0, 4.0, 6.0}


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_dare_keeps_so_many_of_each_slot_and_scales_them_up(density):
    x = updates(1)[0].delta
    for before, after in zip(slots(x), slots(sent(DARE(Mean(), density), x)), strict=True):
        kept = after != 0
        assert int(kept.sum()) == max(1, round(density * before.numel()))
        assert torch.allclose(after[kept], before[kept] * before.numel() / int(kept.sum()), rtol=1e-6)


def test_l1_keeps_each_slots_sum_of_magnitudes():
    x = updates(1)[0].delta
    for before, after in zip(slots(x), slots(sent(DARE(Mean(), 0.2, "l1"), x)), strict=True):
        assert torch.allclose(after.abs().sum(), before.abs().sum(), rtol=1e-5)
        ratios = (after / before)[after != 0]
        assert torch.allclose(ratios, ratios[0].expand_as(ratios), rtol=1e-5)


@pytest.mark.parametrize("strategy", [DARE(Mean(), 0.3), DARE(Mean(), 0.3, seed="shared"), DELLA(Mean(), 0.5, 0.3)])
def test_the_mean_over_draws_is_the_delta(strategy):
    x = updates(1)[0].delta
    total = torch.zeros(SPACE.numel, dtype=torch.float64)
    for number in range(ROUNDS):
        total += sent(strategy, x, replace(CTX, round=number))
    error = (total / ROUNDS - x).abs() / x.abs()
    assert float(error.max()) < 5 * np.sqrt(1 / 0.2 / ROUNDS)


def test_private_masks_are_each_clients_own_and_shared_ones_are_the_rounds():
    one, other = (u.delta for u in updates(2))
    private, shared = DARE(Mean(), 0.3), DARE(Mean(), 0.3, seed="shared")

    def masks(strategy, ctx=CTX):
        return [sent(strategy, x, ctx) != 0 for x in (one, other)]

    assert not torch.equal(*masks(private)) and torch.equal(*masks(shared))
    for strategy in (private, shared):
        for ctx in (replace(CTX, round=6), replace(CTX, seed=4)):
            assert not torch.equal(masks(strategy)[0], masks(strategy, ctx)[0])
    assert int((merged(shared, updates(9)) != 0).sum()) < int((merged(private, updates(9)) != 0).sum())


def test_della_keeps_the_larger_likelier_row_by_row():
    space = Space((Slot("a", (2, 5), "lora_A"), Slot("b", (5,), "head")))
    x = torch.tensor([1.0, -2.0, 4.0, -8.0, 16.0]).repeat(3)
    counts, strategy = torch.zeros(15), DELLA(Mean(), 0.5, 0.4)
    for number in range(ROUNDS):
        found = sent(strategy, x, Context(space, round=number))
        kept = found != 0
        counts += kept
        q = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).repeat(3)
        assert torch.allclose(found[kept], (x / q)[kept], rtol=1e-6)
    assert torch.allclose(counts / ROUNDS, q, atol=5 * np.sqrt(0.25 / ROUNDS))


def by_breadcrumbs(x, density, gamma):
    out = np.zeros_like(x)
    kept = max(1, round(density * x.size))
    dropped = min(round(gamma * x.size), x.size - kept)
    order = np.argsort(-np.abs(x))[dropped : dropped + kept]
    out[order] = x[order]
    return out


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.1), (0.2, 0.0), (0.01, 0.5), (1.0, 0.0)])
def test_breadcrumbs_drops_both_ends_of_each_slot(density, gamma):
    x = updates(1)[0].delta
    found = sent(Breadcrumbs(Mean(), density, gamma), x)
    for before, after in zip(slots(x), slots(found), strict=True):
        assert np.array_equal(after.numpy(), by_breadcrumbs(before.numpy(), density, gamma))
        assert after.any()


def test_breadcrumbs_leaves_a_slot_of_one_magnitude_as_it_is():
    x = updates(1, "ternary")[0].delta
    assert torch.equal(sent(Breadcrumbs(Mean(), 0.5, 0.1), x.sign() + (x == 0)), x.sign() + (x == 0))


@pytest.mark.parametrize("inner", [TIES(trim="none"), Krum(2)], ids=repr)
def test_they_compose_with_any_strategy(inner):
    cohort = updates(9)
    for wrap in (DARE(inner, 0.5), DELLA(inner, 0.5), Breadcrumbs(inner, 0.5)):
        before = [wrap.before(u, Context(SPACE)) for u in cohort]
        assert torch.equal(merged(wrap, cohort), merged(inner, before))
        assert wrap.additive == inner.additive


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DARE(Mean(), 0.0), r"density must lie in \(0, 1\], got 0.0"),
        (lambda: DARE(Mean(), 0.5, "l2"), "rescale must be 'density' or 'l1', got 'l2'"),
        (lambda: DARE(Mean(), 0.5, seed="own"), "seed must be 'private' or 'shared', got 'own'"),
        (lambda: DARE(None, 0.5), "DARE: strategy must be a strategy, got None"),
        (lambda: DELLA(Mean(), 0.5, 0.5), r"epsilon must leave 0.5 -\+ epsilon in \(0, 1\], got 0.5"),
        (lambda: DELLA(Mean(), 0.9, 0.2), r"epsilon must leave 0.9 -\+ epsilon in \(0, 1\], got 0.2"),
        (lambda: DELLA(Mean(), 0.5, -0.1), "epsilon must leave 0.5"),
        (lambda: Breadcrumbs(Mean(), 1.5), r"density must lie in \(0, 1\], got 1.5"),
        (lambda: Breadcrumbs(Mean(), 0.9, 0.2), r"gamma must lie in \[0, 1 - density\], which is 0.1, got 0.2"),
        (lambda: Breadcrumbs(Mean(), 0.9, float("nan")), "gamma must lie in"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
