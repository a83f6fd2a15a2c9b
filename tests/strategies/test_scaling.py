"""Task arithmetic, negation, and norm bounds."""

import math

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.federation.optimizer import ServerOptimizer
from fedpeft.federation.plan import Plan
from fedpeft.space import Slot, Space
from fedpeft.strategies import (
    ClipNorm,
    Context,
    FlexLoRA,
    Mean,
    RankVote,
    RidgeHead,
    Scaled,
    SubspaceStep,
    Update,
    by_slot,
)
from fedpeft.training import Settings
from tests.strategies.examples import SPACE, START, merged, updates


def test_task_arithmetic_is_the_sum_of_tasks_times_lambda():
    cohort = [Update(u.delta) for u in updates(8)]
    expected = 0.3 * torch.stack([u.delta.double() for u in cohort]).sum(0)
    assert torch.allclose(merged(Scaled(Mean(), 0.3 * 8), cohort).double(), expected, rtol=1e-5, atol=1e-7)


def test_negation_takes_away_what_was_learned():
    cohort = updates(1)
    assert not (merged(Scaled(Mean(), -1.0), cohort) + cohort[0].delta).any()


def test_a_lora_is_negated_in_one_factor():
    space = Space((Slot("q.lora_A.weight", (2, 5), "lora_A"), Slot("q.lora_B.weight", (7, 2), "lora_B")))
    cohort = updates(3, space=space)

    def product(strategy):
        merged = space.tensors(strategy.merge(cohort, Context(space)))
        return merged["q.lora_B.weight"] @ merged["q.lora_A.weight"]

    assert torch.allclose(product(Scaled(Mean(), -1.0)), product(Mean()))
    negated = by_slot({"lora_B": Scaled(Mean(), -1.0)}, default=Mean())
    assert torch.allclose(product(negated), -product(Mean()))


@pytest.mark.parametrize("inner", [RankVote(), SubspaceStep(), RidgeHead(Mean()), FlexLoRA()], ids=repr)
def test_what_says_where_parameters_shall_be_is_not_scaled_in_a_run(inner):
    settings, optimizer = Settings(supermask=0.5 if inner.scores else 0.0), ServerOptimizer("SGD(lr=1.0)")

    def plan(strategy):
        return Plan(1, strategy=strategy, optimizer=optimizer, settings=settings)

    for factor in (0.5, -1.0, 3.0):
        why = f"says where parameters shall be, and {factor:g} times the way leads elsewhere"
        for strategy in (
            Scaled(inner, factor),
            ClipNorm(Scaled(inner, factor), 1.0),
            Scaled(Scaled(inner, factor), 1.0),
        ):
            with pytest.raises(ValueError, match=f"cannot merge in a run: .*{why}"):
                plan(strategy)
    ctx, cohort = Context(SPACE, START), updates(9)
    whole, half = Scaled(inner, 1.0), Scaled(inner, 0.5)
    assert plan(whole).strategy.settles
    assert torch.equal(whole.merge(cohort, ctx), inner.merge(cohort, ctx))
    assert not torch.allclose(START + half.merge(cohort, ctx), START + inner.merge(cohort, ctx))


def test_what_says_where_to_move_is_scaled_inside_what_settles():
    plan = Plan(1, strategy=RidgeHead(Scaled(Mean(), 0.5)), optimizer=ServerOptimizer("SGD(lr=1.0)"))
    assert plan.strategy.settles and not plan.strategy.offline and not Scaled(Mean(), 0.5).settles


@pytest.mark.parametrize("norm", [1e-3, 1.0, 9.0, 1e6])
@pytest.mark.parametrize("kind", ["normal", "huge"])
def test_each_client_is_clipped(norm, kind):
    cohort = updates(9, kind)
    clipped = [
        Update((u.delta.double() * min(1, norm / float(u.delta.double().norm()))).float(), u.weight) for u in cohort
    ]
    assert torch.allclose(merged(ClipNorm(Mean(), norm), cohort), merged(Mean(), clipped), rtol=1e-5, atol=1e-9)


def test_what_is_short_is_left_alone():
    x = torch.zeros(SPACE.numel)
    x[:2] = torch.tensor([3.0, 4.0])
    assert torch.equal(merged(ClipNorm(Mean(), 5.0), [Update(x)]), x)
    assert torch.allclose(merged(ClipNorm(Mean(), 2.5), [Update(x)]), x / 2)
    assert not merged(ClipNorm(Mean(), 1.0), [Update(0 * x)]).any()


@pytest.mark.parametrize("threshold", ["slot", "global"])
@pytest.mark.parametrize("norm", [0.5, 1e9])
def test_a_ternary_update_is_clipped_in_bit_planes(threshold, norm):
    codec = Ternary(density=0.4, threshold=threshold)
    sent = codec.planes(codec.encode(updates(1)[0].delta, SPACE, Sender()), SPACE, Sender())
    found = ClipNorm(Mean(), norm).before(Update(sent), Context(SPACE)).sent
    dense = ClipNorm(Mean(), norm).before(Update(sent.dense()), Context(SPACE)).sent
    assert type(found) is type(sent) and np.array_equal(found.mask, sent.mask)
    assert torch.equal(found.dense(), dense)
    assert math.isclose(float(dense.double().norm()), min(norm, float(sent.dense().double().norm())), rel_tol=1e-6)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_wrong_factor_is_named(factor):
    with pytest.raises(ValueError, match=f"factor must be finite, got {factor}"):
        Scaled(Mean(), factor)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_norm_is_named(norm):
    with pytest.raises(ValueError, match=f"norm must be positive and finite, got {norm}"):
        ClipNorm(Mean(), norm)
