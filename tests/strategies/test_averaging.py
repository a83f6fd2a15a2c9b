"""A strategy that says that it knows updates by their mean alone makes the same of means of some of them."""

import pytest

from fedpeft.strategies import (
    DARE,
    TIES,
    ClipNorm,
    Consensus,
    IsoC,
    Mean,
    RankAllocation,
    Scaled,
    SeenMean,
    SubspaceStep,
    Update,
    by_slot,
)
from tests.strategies.examples import EXAMPLES, context, updates

STRATEGIES = [e.strategy for e in EXAMPLES]
AVERAGING = [Mean(), Scaled(Mean(), -0.5), Scaled(Scaled(Mean(), 2.0), 3.0), IsoC(Mean()), IsoC(Scaled(Mean(), 2.0))]
# Means, for updates that are nowhere zero.
ALIKE = SeenMean(), Consensus(threshold=1.0, agree=1), RankAllocation(Mean(), keep=1.0)
GROUPS = [[slice(0, 9)], [slice(0, 4), slice(4, 9)], [slice(i, i + 1) for i in range(9)], [slice(1, 9), slice(0, 1)]]


def mean(cohort):
    """One update in the place of some."""
    weight = sum(update.weight for update in cohort)
    delta = sum(update.delta.double() * update.weight for update in cohort) / weight
    return Update(delta.float(), weight)


def apart(strategy, groups):
    """How far what it makes of means is from what it makes of all, for its size."""
    cohort, ctx = updates(9), context(strategy)
    whole = strategy.merge(cohort, ctx)
    return float((strategy.merge([mean(cohort[group]) for group in groups], ctx) - whole).norm() / whole.norm())


@pytest.mark.parametrize("strategy", {repr(s): s for s in STRATEGIES + AVERAGING if s.averaging}.values(), ids=repr)
@pytest.mark.parametrize("groups", GROUPS, ids=len)
def test_means_of_updates_are_merged_as_the_updates(strategy, groups):
    assert apart(strategy, groups) < 1e-5
    assert strategy.least == 1 and not strategy.needs


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if not s.averaging and s not in ALIKE], ids=repr)
def test_those_that_do_not_say_so_do_not(strategy):
    if strategy.needs or strategy.least > 2 or repr(strategy).startswith("by_slot"):
        return
    assert apart(strategy, [slice(0, 4), slice(4, 9)]) > 1e-5


def test_a_wrapper_says_what_the_strategy_inside_does():
    assert all(strategy.averaging for strategy in AVERAGING)
    for other in (TIES(), Scaled(TIES(), 0.5), IsoC(SubspaceStep()), ClipNorm(Mean(), 1.0), DARE(Mean(), 0.5)):
        assert not other.averaging
    assert not by_slot({"head": Mean()}, default=TIES()).averaging
