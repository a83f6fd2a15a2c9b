"""What a strategy around another one passes on, and what it declares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from fedpeft.strategies import TIES, Context, Fisher, Fold, GeometricMedian, Krum, Mean, Scaled, Strategy
from fedpeft.strategies.wrapping import After, Before
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, merged, updates

INNER = [Mean(), TIES(), Fisher(), GeometricMedian(), Krum(2)]
every_inner = pytest.mark.parametrize("inner", INNER, ids=repr)


@dataclass(frozen=True)
class Doubled(Before):
    def before(self, update, ctx):
        return replace(update, sent=update.delta * 2)


@dataclass(frozen=True)
class Plus(After):
    def after(self, merged, ctx):
        return merged + 1


@dataclass(frozen=True)
class Anchored(Mean):
    anchored = True


@every_inner
@pytest.mark.parametrize("wrap", [Doubled, Plus, lambda inner: Plus(Doubled(inner))])
def test_a_wrapper_declares_what_is_inside(inner, wrap):
    for one in (inner, Anchored()):
        assert all(getattr(wrap(one), name) == getattr(one, name) for name in ("additive", "needs", "anchored"))
        assert (wrap(one).passes, wrap(one).least) == (one.passes, one.least)


@every_inner
def test_before_is_done_to_each_update_and_after_to_the_merge(inner):
    cohort = updates(9)
    twice = [replace(u, sent=u.delta * 2) for u in cohort]
    assert torch.equal(merged(Doubled(inner), cohort), merged(inner, twice))
    assert torch.equal(merged(Plus(inner), cohort), merged(inner, cohort) + 1)
    assert torch.equal(merged(Plus(Doubled(Plus(inner))), cohort), merged(inner, twice) + 1 + 1)


@pytest.mark.parametrize("inner", [i for i in INNER if i.additive and i.passes == 1], ids=repr)
def test_a_wrapped_sum_is_folded_update_by_update(inner):
    cohort, strategy = updates(9), Plus(Doubled(inner))
    fold = Fold(strategy, Context(SPACE))
    for update in cohort:
        fold.accumulate(update)
    assert torch.equal(fold.finalize(), merged(strategy, cohort))
    assert fold.total.keys() == inner.lift(cohort[0], Context(SPACE)).keys()


@pytest.mark.parametrize("strategy", [Doubled(Krum(2)), Plus(Krum(2)), Plus(Doubled(Krum(2)))], ids=repr)
def test_what_is_no_sum_has_no_summands(strategy):
    with pytest.raises(TypeError, match=r"Krum\(.*\) is not a function of sums, so .*: use merge"):
        strategy.lift(updates(1)[0], Context(SPACE))
    with pytest.raises(TypeError, match="is not a function of sums"):
        Fold(strategy, Context(SPACE)).accumulate(*updates(2))


class Reading(Strategy):
    """Reads updates in every way that a sequence can be read."""

    def merge(self, updates, ctx):
        rows = [updates[0], updates[-1], *updates[1:-1], *reversed(updates), *updates[::2][1:]]
        assert isinstance(updates, Sequence) and len(updates) == 5 and len(updates[1:-1]) == 3
        return torch.stack([u.delta for u in rows]).sum(0)


def test_updates_are_changed_however_they_are_read():
    cohort = updates(5)
    twice = [replace(u, sent=u.delta * 2) for u in cohort]
    assert torch.equal(merged(Doubled(Reading()), cohort), merged(Reading(), twice))


def test_one_changed_update_at_a_time_is_in_memory():
    held = []

    class Lazy(Sequence):
        def __len__(self):
            return 64

        def __getitem__(self, i):
            return updates(64)[i]

    @dataclass(frozen=True)
    class Watched(Mean):
        def accumulate(self, total, updates, ctx):
            held.append(len(updates))
            super().accumulate(total, updates, ctx)

    assert torch.equal(Doubled(Watched()).merge(Lazy(), Context(SPACE)), merged(Doubled(Mean()), updates(64)))
    assert held == [1] * 64


@without_type_checks()
@pytest.mark.parametrize("inner", [None, Mean, "Mean()"])
def test_only_a_strategy_can_be_inside(inner):
    with pytest.raises(ValueError, match="Scaled: strategy must be a strategy, got "):
        Scaled(inner, 1.0)
