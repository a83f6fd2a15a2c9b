"""What holds for every additive strategy, to the bit where the summands are whole numbers.

Types and shapes are checked in `test_laws`; what is repeated often runs without, in a third of the time.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Broadcast, Context, Fold, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import EXAMPLES, SPACE, context, contexts, updates

SUMS = [e.strategy for e in EXAMPLES if e.strategy.additive]
every_sum = pytest.mark.parametrize("strategy", SUMS, ids=repr)
every_cohort = pytest.mark.parametrize("clients", [1, 2, 7, 20])
exact_or_not = pytest.mark.parametrize("kind", ["normal", "integers"])


def fold(strategy, cohort, ctx=None):
    folded = Fold(strategy, ctx or context(strategy))
    for update in cohort:
        folded.accumulate(update)
    return folded


def assert_same(one, other, exact):
    """Totals to the bit, or to 1e-12 of their scale."""
    assert one.total.keys() == other.total.keys()
    for name, tensor in one.total.items():
        if exact:
            assert torch.equal(tensor, other.total[name])
        else:
            scale = float(tensor.abs().max()) if tensor.numel() else 0.0
            assert torch.allclose(tensor, other.total[name], rtol=1e-12, atol=1e-12 * scale)


def outcome(folded):
    """What a fold is finished to, as one vector."""
    found = folded.finalize()
    return torch.cat([t.reshape(-1) for t in found.told.values()]) if isinstance(found, Broadcast) else found


def whole(strategy, kind):
    """Whether sums are exact: a strategy of several passes, or of adapters, lifts whole numbers to fractions."""
    return kind == "integers" and strategy.passes == 1 and not strategy.anchored and exact_lifts(strategy)


def exact_lifts(strategy):
    lifted = strategy.lift(updates(3, "integers")[0], context(strategy))
    return all(torch.equal(tensor, tensor.round()) for tensor in lifted.values())


@every_sum
@every_cohort
@exact_or_not
@without_type_checks()
def test_streaming_equals_batch(strategy, clients, kind):
    cohort = updates(clients, kind)
    for ctx in contexts(strategy, cohort):
        lifted = [strategy.lift(update, ctx) for update in cohort]
        batch = Fold(strategy, ctx, {n: torch.stack([s[n] for s in lifted]).sum(0) for n in lifted[0]})
        at_once = Fold(strategy, ctx)
        at_once.accumulate(*cohort)
        one_by_one = fold(strategy, cohort, ctx)
        assert_same(one_by_one, batch, exact=whole(strategy, kind))
        assert_same(at_once, batch, exact=whole(strategy, kind))


@every_sum
@every_cohort
@exact_or_not
@without_type_checks()
def test_any_tree_and_any_order_equal_flat(strategy, clients, kind):
    cohort = updates(clients, kind)
    for ctx in contexts(strategy, cohort):
        flat = fold(strategy, cohort, ctx)
        for seed in range(2):
            draw = np.random.default_rng(seed)
            branches = [fold(strategy, [cohort[i]], ctx) for i in draw.permutation(clients)] + [Fold(strategy, ctx)]
            while len(branches) > 1:
                left = branches.pop(draw.integers(len(branches)))
                branches[draw.integers(len(branches))].merge(left)
            assert_same(flat, branches[0], exact=whole(strategy, kind))


@every_sum
def test_a_lift_is_float64_of_a_size_that_no_client_changes(strategy):
    shapes = set()
    for update in updates(4) + updates(4, "ternary"):
        lifted = strategy.lift(update, context(strategy))
        assert all(tensor.dtype == torch.float64 for tensor in lifted.values())
        shapes.add(tuple((name, tensor.shape) for name, tensor in sorted(lifted.items())))
    assert len(shapes) == 1


@every_sum
@pytest.mark.parametrize("clients", [1, 8, 9, 20])
@pytest.mark.parametrize("threshold", ["slot", "global"])
@without_type_checks()
def test_bit_planes_are_merged_as_what_they_stand_for(strategy, clients, threshold):
    codec = Ternary(density=0.4, threshold=threshold)
    parts = [codec.encode(u.delta, SPACE, Sender()) for u in updates(clients)]
    cohort = updates(clients)
    planes, dense = (
        [replace(u, sent=read(p, SPACE, Sender())) for u, p in zip(cohort, parts, strict=True)]
        for read in (codec.planes, codec.decode)
    )
    assert all(torch.equal(a.delta, b.delta) for a, b in zip(planes, dense, strict=True))
    at_once, mixed, written = (Fold(strategy, context(strategy)) for _ in range(3))
    at_once.accumulate(*planes)
    mixed.accumulate(*(a if i % 3 else b for i, (a, b) in enumerate(zip(planes, dense, strict=True))))
    written.accumulate(*dense)
    for found in (at_once, mixed):
        assert_same(found, written, exact=False)
        assert torch.allclose(outcome(found), outcome(written), rtol=1e-5, atol=1e-7)


@every_sum
def test_merging_copies_and_an_empty_branch_adds_nothing(strategy):
    cohort = updates(4)
    root, branch = Fold(strategy, context(strategy)), fold(strategy, cohort[:2])
    root.merge(Fold(strategy, context(strategy)))
    root.merge(branch)
    root.merge(Fold(strategy, context(strategy)))
    kept = fold(strategy, cohort[:2])
    branch.accumulate(cohort[2])
    assert_same(root, kept, exact=True)
    assert_same(branch, fold(strategy, cohort[:3]), exact=True)


@every_sum
def test_a_refused_update_leaves_the_total_as_it_was(strategy):
    folded = fold(strategy, updates(3))
    with pytest.raises(ValueError, match="a weight must be positive"):
        folded.accumulate(updates(1)[0], Update(torch.ones(SPACE.numel), -1.0))
    assert_same(folded, fold(strategy, updates(3)), exact=True)


@every_sum
def test_a_branch_of_another_strategy_or_space_is_refused(strategy):
    other = next(s for s in SUMS if s != strategy)
    elsewhere = Fold(strategy, Context(Space((Slot("a", (SPACE.numel,), "lora_A"),))))
    for branch in (fold(other, updates(2)), elsewhere):
        with pytest.raises(ValueError, match=r"cannot add a total of [\w.]+\("):
            fold(strategy, updates(2)).merge(branch)


@every_sum
def test_a_fold_can_be_written_down_and_taken_up(strategy):
    cohort = updates(6)
    half = fold(strategy, cohort[:3])
    again = Fold(strategy, context(strategy), {name: tensor.clone() for name, tensor in half.total.items()})
    for update in cohort[3:]:
        again.accumulate(update)
    assert_same(again, fold(strategy, cohort), exact=True)


@every_sum
def test_an_empty_fold_has_nothing_to_give(strategy):
    with pytest.raises(ValueError, match="nothing to merge"):
        Fold(strategy, context(strategy)).finalize()


@every_sum
@without_type_checks()
def test_memory_does_not_grow_with_the_cohort(strategy):
    sizes = {
        clients: sum(t.untyped_storage().nbytes() for t in fold(strategy, updates(clients)).total.values())
        for clients in (1, 64)
    }
    assert sizes[1] == sizes[64]


def test_four_sums_elect_a_sign():
    total = fold(TIES(), updates(5)).total
    assert sum(t.untyped_storage().nbytes() for t in total.values()) == 8 * (4 * SPACE.numel + 1)
