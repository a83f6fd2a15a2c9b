"""Each group of slots has the strategy that its pattern names, whatever the others are."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fedpeft import strategies
from fedpeft.space import Space
from fedpeft.strategies import (
    TIES,
    Context,
    Fisher,
    Fold,
    GeometricMedian,
    Krum,
    Majority,
    Mean,
    RegMean,
    RidgeHead,
    Scaled,
    Update,
    by_slot,
)
from fedpeft.strategies.statistics import statistic_space
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, START, merged, updates

ROLES = ("lora_A", "lora_B", "head")


def of_role(role):
    return SPACE.subspace(slot.name for slot in SPACE.slots if slot.role == role)


def gathered(vector, space, group):
    return torch.cat([space.view(vector, slot.name).reshape(-1) for slot in group.slots])


def alone(strategy, cohort, group, start=None):
    """What a strategy makes of a group of slots as if there were no others."""
    parts = []
    for update in cohort:
        statistics = {
            name: gathered(update.statistics[name], statistic_space(name, SPACE), statistic_space(name, group))
            for name in strategy.needs
        }
        parts.append(Update(gathered(update.delta, SPACE, group), update.weight, statistics))
    begin = None if start is None else gathered(start, SPACE, group)
    return group.tensors(strategy.merge(parts, Context(group, begin)))


CHOICES = [
    (Mean(), Mean(), Mean()),
    (Mean(), TIES(), Scaled(Mean(), -2.0)),
    (GeometricMedian(), Fisher(), TIES(trim="global")),
    (Mean(), RegMean(), GeometricMedian(iterations=1)),
    (Krum(2), TIES(), Majority()),
    (by_slot({"*.0.*": TIES()}, default=Mean()), RegMean(), Krum(1)),
]


@pytest.mark.parametrize("chosen", CHOICES, ids=repr)
@pytest.mark.parametrize("lazy", [False, True])
def test_each_group_is_merged_as_if_it_were_alone(chosen, lazy):
    cohort = updates(9)
    strategy = by_slot(dict(zip(ROLES[:2], chosen, strict=False)), default=chosen[2])
    found = SPACE.tensors(strategy.merge(Lazy(cohort) if lazy else cohort, Context(SPACE, START)))
    expected = {
        name: tensor
        for role, inner in zip(ROLES, chosen, strict=True)
        for name, tensor in alone(inner, cohort, of_role(role), START).items()
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7)


class Lazy(Sequence):
    """No list, so it is read in groups, and again for each pass."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i):
        return Lazy(self._rows[i]) if isinstance(i, slice) else replace(self._rows[i])


def test_it_declares_what_any_of_its_strategies_declares():
    sums = by_slot({"lora_A": Fisher(), "lora_B": GeometricMedian()}, default=TIES())
    assert sums.additive and sums.needs == {"fisher"} and not sums.anchored
    assert (sums.passes, sums.least) == (GeometricMedian().passes, 1)
    mixed = by_slot({"lora_A": Krum(2), "lora_B": RegMean()}, default=Mean())
    assert not mixed.additive and mixed.needs == {"gram"}
    assert (mixed.passes, mixed.least) == (3, Krum(2).least)
    with pytest.raises(TypeError, match=r"Krum\(.*\) is not a function of sums, so its group has no summands"):
        Fold(mixed, Context(SPACE)).accumulate(*updates(7))


@pytest.mark.parametrize("inside", [Mean(), Krum(1)])
def test_a_group_takes_a_statistic_in_the_rounds_in_which_it_asks(inside):
    strategy = by_slot({"head": RidgeHead(inside, every=2)}, default=Mean())
    cohort = [replace(u, statistics={}) for u in updates(5)]
    assert torch.isfinite(strategy.merge(cohort, Context(SPACE, START, round=1))).all()
    with without_type_checks(), pytest.raises(ValueError, match="an update with the statistic 'head'"):
        strategy.merge(cohort, Context(SPACE, START, round=2))


def test_a_group_that_has_its_delta_is_not_lifted_again():
    strategy, cohort = by_slot({"lora_A": GeometricMedian(iterations=3)}, default=Mean()), updates(5)
    first = Fold(strategy, Context(SPACE))
    first.accumulate(*cohort)
    assert {name.split(".")[0] for name in first.total} == {"0", "1"}
    second = Fold(strategy, replace(first.ctx, told=first.finalize().told))
    second.accumulate(*cohort)
    assert {name.split(".")[0] for name in second.total} == {"0"}


def test_the_first_pattern_that_fits_counts_by_name_or_role():
    strategy = by_slot({"m.0.*": Scaled(Mean(), 2.0), "lora_A": Scaled(Mean(), 3.0)}, default=Mean())
    cohort = updates(1)
    factors = {
        name: round(float((tensor / SPACE.view(cohort[0].delta, name)).mean()))
        for name, tensor in SPACE.tensors(merged(strategy, cohort)).items()
        if tensor.numel()
    }
    assert factors == {
        "m.0.lora_A.weight": 2, "m.0.lora_B.weight": 2, "m.1.lora_A.weight": 3, "m.1.lora_B.weight": 1,
        "m.score.bias": 1, "m.score.weight": 1,
    }  # fmt: skip


def test_without_rules_it_is_the_default():
    assert torch.equal(merged(by_slot({}, default=TIES()), updates(5)), merged(TIES(), updates(5)))
    assert repr(strategies.parse("by_slot({}, default=Mean())")) == "by_slot({}, default=Mean())"


def test_a_pattern_that_fits_nothing_is_named():
    strategy = by_slot({"lora_A": Mean(), "*.lora_A.*": TIES()}, default=Mean())
    with pytest.raises(ValueError, match=r"by_slot: the pattern '\*.lora_A.\*' fits no slot that an earlier one left"):
        merged(strategy, updates(2))
    with pytest.raises(ValueError, match="the pattern 'lora_A' fits no slot"):
        merged(strategy, updates(2, space=of_role("head")), Space(of_role("head").slots))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_slot({"a": None}, default=Mean()), "a strategy for 'a', got None"),
        (lambda: by_slot({}, default="Mean()"), r"a strategy for 'default', got 'Mean\(\)'"),
        (lambda: by_slot({3: Mean()}, default=Mean()), "a mapping of patterns to strategies, got {3: "),
        (lambda: by_slot([("a", Mean())], default=Mean()), r"a mapping of patterns to strategies, got \["),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
