"""The reported error is that of the products written out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, FlexLoRA, Mean, Update, product_error
from fedpeft.strategies.lora import modules
from tests.codecs.examples import without_type_checks
from tests.strategies.lora_cohorts import cohort, dense, distance, mean_product, space


class Lazy(Sequence):
    """Updates that are decoded when they are asked for, and counted."""

    def __init__(self, updates):
        self.updates, self.reads = updates, 0

    def __len__(self):
        return len(self.updates)

    def __getitem__(self, i):
        found = Update(self.updates[i].delta.clone(), self.updates[i].weight)
        self.reads += 1
        return found


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("het", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("clients", [1, 2, 20, 128])
def test_it_is_the_dense_error(clients, het, rotated):
    ctx, updates = cohort(clients, het, rotated, space(alpha_pattern={"1": 100}, use_rslora=True))
    for strategy in (Mean(), FlexLoRA()):
        merged = strategy.merge(updates, ctx)
        expected = distance(dense(ctx, merged), mean_product(ctx, updates))
        for options in ({}, {"held": 8 * 50 * ctx.space.numel}, {"probes": 30}):
            assert product_error(updates, merged, ctx, **options) == pytest.approx(expected, rel=1e-6, abs=2e-7)


@pytest.mark.parametrize(("het", "low", "high"), [(0.05, 3e-4, 1e-3), (0.2, 5e-3, 2e-2), (1.0, 0.15, 0.3)])
def test_the_bias_of_averaged_factors_grows_with_heterogeneity(het, low, high):
    shapes = {"m.0": (96, 64), "m.1": (64, 128)}
    ctx, updates = cohort(20, het, where=space(8, shapes))
    assert low < product_error(updates, Mean().merge(updates, ctx), ctx) < high


def test_the_bias_is_almost_everything_where_clients_have_bases_of_their_own():
    ctx, updates = cohort(20, 0.2, True, space(16, {"m.0": (48, 64), "m.1": (64, 32)}))
    assert 0.9 < product_error(updates, Mean().merge(updates, ctx), ctx) < 1.05


def test_layers_count_by_their_scaling():
    whole, heavy = (cohort(5, where=space(**how)) for how in ({}, {"alpha_pattern": {"0": 1e5}}))
    only = space().subspace(["m.0.lora_A.weight", "m.0.lora_B.weight"])
    merged = Mean().merge(whole[1], whole[0])

    def part(vector):
        return only.flatten({slot.name: whole[0].space.view(vector, slot.name) for slot in only.slots})

    cut = [Update(part(u.delta), u.weight) for u in whole[1]]
    alone = product_error(cut, part(merged), Context(only, part(whole[0].start)))
    assert product_error(whole[1], merged, whole[0]) != pytest.approx(alone, rel=1e-3)
    assert product_error(heavy[1], merged, heavy[0]) == pytest.approx(alone, rel=1e-6)


@without_type_checks()
def test_probes_estimate_it_in_one_pass():
    ctx, updates = cohort(20, 1.0, where=space(4, {"m.0": (60, 200), "m.1": (50, 300)}))
    merged = Mean().merge(updates, ctx)
    exact = product_error(updates, merged, ctx)
    lazy = Lazy(updates)
    assert product_error(lazy, merged, ctx, probes=64) == pytest.approx(exact, rel=0.15)
    assert lazy.reads == 20
    seeds = [product_error(updates, merged, Context(ctx.space, ctx.start, seed), probes=16) for seed in range(40)]
    assert np.sqrt(np.mean(np.square(seeds))) == pytest.approx(exact, rel=0.05)
    assert len(set(seeds)) == 40


@without_type_checks()
def test_each_update_is_read_once_where_all_fit():
    ctx, updates = cohort(9)
    merged = Mean().merge(updates, ctx)
    for held, reads in ((1 << 28, 9), (8 * 3 * ctx.space.numel, 9 + 6 + 3)):
        lazy = Lazy(updates)
        assert product_error(lazy, merged, ctx, held=held) == pytest.approx(product_error(updates, merged, ctx))
        assert lazy.reads == reads


def test_nothing_to_compare():
    ctx, updates = cohort(3)
    zero = Context(ctx.space)
    nothing = [Update(torch.zeros(ctx.space.numel))] * 3
    assert product_error(nothing, nothing[0].delta, zero) == 0.0
    assert product_error(nothing, updates[0].delta, zero) == float("inf")
    assert product_error(updates, nothing[0].delta, zero) == pytest.approx(1.0)
    head = Context(Space((Slot("head", (4,), "head"),)))
    assert modules(head.space) == ()
    assert product_error([Update(torch.ones(4))], torch.zeros(4), head) == 0.0


def test_one_frozen_factor_is_no_error():
    ctx, updates = cohort(6)
    for update in updates:
        for module in modules(ctx.space):
            ctx.space.view(update.delta, module.a).zero_()
    assert product_error(updates, Mean().merge(updates, ctx), ctx) < 1e-6


def test_huge_products_stay_finite():
    ctx, updates = cohort(6)
    huge = [Update(u.delta * 1e30, u.weight) for u in updates]
    assert 0 < product_error(huge, Mean().merge(huge, ctx), ctx) < 2


@pytest.mark.parametrize(
    ("updates", "more", "message"),
    [
        (0, {}, "there is no update to compare the merged adapter with"),
        (2, {"probes": 0}, "probes must be at least 1, or None for the exact error, got 0"),
    ],
)
def test_a_wrong_argument_is_named(updates, more, message):
    ctx, known = cohort(2)
    with pytest.raises(ValueError, match=message):
        product_error(known[:updates], known[0].delta, ctx, **more)
    with pytest.raises(ValueError, match="a weight must be positive and finite"):
        product_error([Update(known[0].delta, 0.0)], known[0].delta, ctx)
