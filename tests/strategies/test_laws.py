"""What holds for every strategy."""

import pickle
from functools import reduce

import numpy as np
import pytest
import torch

from fedpeft import strategies
from fedpeft.space import Slot, Space
from fedpeft.strategies import NAMES, Context, Fold, Mean, SignElection, Strategy, Update
from tests.codecs.examples import without_type_checks

STRATEGIES = [Mean(), *(SignElection(e, a) for e in ("sum", "count") for a in ("agreeing", "all"))]
SPACE = Space(
    (Slot("a", (3, 5), "lora_A"), Slot("b", (7, 3), "lora_B"), Slot("c", (), "head"), Slot("d", (0,), "head"))
)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
every_cohort = pytest.mark.parametrize("clients", [1, 2, 7, 128])


def updates(clients, kind="normal", space=SPACE):
    """Deltas and weights of a cohort; with integers, float64 sums are exact in any order."""
    draw = np.random.default_rng(clients)
    x, weights = draw.standard_normal((clients, space.numel)), draw.uniform(0.5, 99, clients)
    match kind:
        case "integers":
            x, weights = np.round(4 * x), np.ceil(weights)
        case "ternary":
            x, weights = np.sign(x) * (np.abs(x) > 0.8), np.ones(clients)
        case "huge":
            x = x * 1e30
    return [Update(torch.from_numpy(d).float(), float(w)) for d, w in zip(x, weights, strict=True)]


def fold(strategy, cohort, space=SPACE):
    folded = Fold(strategy, Context(space))
    for update in cohort:
        folded.accumulate(update)
    return folded


def assert_same(one, other, exact):
    """Totals to 1e-12 of their scale, or to the bit; and what is made of them to a bit of float32."""
    assert one.total.keys() == other.total.keys()
    for name, tensor in one.total.items():
        if exact:
            assert torch.equal(tensor, other.total[name])
        else:
            scale = float(tensor.abs().max()) if tensor.numel() else 0.0
            assert torch.allclose(tensor, other.total[name], rtol=1e-12, atol=1e-12 * scale)
    if exact:
        assert torch.equal(one.finalize(), other.finalize())
    else:
        assert torch.allclose(
            one.finalize(), other.finalize(), rtol=1e-6, atol=1e-12 * float(one.finalize().abs().max())
        )


def test_every_public_strategy_is_held_to_the_laws():
    assert {type(strategy) for strategy in STRATEGIES} == set(NAMES.values())
    assert all(strategy.additive for strategy in STRATEGIES)


@every_strategy
def test_repr_is_the_expression(strategy):
    assert strategies.parse(repr(strategy)) == strategy == pickle.loads(pickle.dumps(strategy))
    assert hash(strategies.parse(repr(strategy))) == hash(strategy)
    assert isinstance(strategy, Strategy) and STRATEGIES.count(strategy) == 1


@every_strategy
@every_cohort
@pytest.mark.parametrize("kind", ["normal", "integers", "huge"])
def test_streaming_equals_batch(strategy, clients, kind):
    cohort = updates(clients, kind)
    lifted = [strategy.lift(update, Context(SPACE)) for update in cohort]
    batch = Fold(strategy, Context(SPACE), {n: torch.stack([s[n] for s in lifted]).sum(0) for n in lifted[0]})
    assert_same(fold(strategy, cohort), batch, exact=kind == "integers")


@every_strategy
@every_cohort
@pytest.mark.parametrize("kind", ["normal", "integers"])
def test_any_tree_and_any_order_equal_flat(strategy, clients, kind):
    cohort = updates(clients, kind)
    flat = fold(strategy, cohort)
    for seed in range(5):
        draw = np.random.default_rng(seed)
        branches = [fold(strategy, [cohort[i]]) for i in draw.permutation(clients)] + [Fold(strategy, Context(SPACE))]
        while len(branches) > 1:
            left = branches.pop(draw.integers(len(branches)))
            branches[draw.integers(len(branches))].merge(left)
        assert_same(flat, branches[0], exact=kind == "integers")
        shuffled = fold(strategy, [cohort[i] for i in draw.permutation(clients)])
        assert_same(flat, shuffled, exact=kind == "integers")


@every_strategy
def test_the_same_order_gives_the_same_bits(strategy):
    one, other = (fold(strategy, updates(128)) for _ in range(2))
    assert_same(one, other, exact=True)
    assert torch.equal(one.finalize(), one.finalize())


@every_strategy
@pytest.mark.parametrize("weight", [1e-30, 1e-3, 1.0, 3.0, 12345.678, 1e9])
def test_one_client_in_gives_its_own_delta_back(strategy, weight):
    x = torch.cat([updates(1)[0].delta[:-4], torch.tensor([0.0, 1e30, -1e-45, 3e-42])])
    assert torch.equal(fold(strategy, [Update(x, weight)]).finalize(), x)
    assert torch.allclose(fold(strategy, [Update(x, weight)] * 7).finalize(), x, rtol=1e-7, atol=0)


@every_strategy
@pytest.mark.parametrize("weight", [0, 0.0, -1.0, float("nan"), float("inf")])
@without_type_checks()
def test_a_weight_of_zero_is_absence_and_is_refused(strategy, weight):
    folded = fold(strategy, updates(3))
    with pytest.raises(ValueError, match=f"a weight must be positive and finite, got {weight}"):
        folded.accumulate(Update(torch.ones(SPACE.numel), weight))
    assert_same(folded, fold(strategy, updates(3)), exact=True)
    almost = fold(strategy, [*updates(3), Update(torch.ones(SPACE.numel), 1e-300)])
    assert torch.allclose(almost.finalize(), folded.finalize(), rtol=1e-6)


@every_strategy
@pytest.mark.parametrize(
    "shape", [(), (1,), (SPACE.numel - 1,), (SPACE.numel + 1,), (1, SPACE.numel), (SPACE.numel, 1)]
)
@without_type_checks()
def test_a_delta_of_another_size_is_refused(strategy, shape):
    folded = Fold(strategy, Context(SPACE))
    with pytest.raises(ValueError, match=rf"expected a delta of shape \({SPACE.numel},\), got \("):
        folded.accumulate(Update(torch.zeros(shape)))
    with pytest.raises(ValueError, match="nothing to merge"):
        folded.finalize()


@every_strategy
def test_only_the_proportion_of_weights_counts(strategy):
    cohort = updates(7)
    merged = fold(strategy, cohort).finalize()
    for factor in (2.0**-20, 8.0):
        scaled = fold(strategy, [Update(u.delta, u.weight * factor) for u in cohort]).finalize()
        assert torch.equal(scaled, merged)
    scaled = fold(strategy, [Update(u.delta, u.weight * 3.7) for u in cohort]).finalize()
    assert torch.allclose(scaled, merged, rtol=1e-6)


@every_strategy
def test_a_weight_of_k_is_k_clients(strategy):
    cohort = updates(5, "integers")
    apart = [Update(u.delta) for u in cohort for _ in range(int(u.weight))]
    assert torch.equal(fold(strategy, cohort).finalize(), fold(strategy, apart).finalize())


@every_strategy
@pytest.mark.parametrize("kind", ["normal", "ternary"])
def test_scale_and_sign_commute(strategy, kind):
    cohort = updates(9, kind)
    merged = fold(strategy, cohort).finalize()
    for factor in (-1.0, 4.0, -0.5):
        scaled = fold(strategy, [Update(u.delta * factor, u.weight) for u in cohort]).finalize()
        assert torch.equal(scaled, merged * factor)


@every_strategy
@every_cohort
def test_nothing_stays_nothing(strategy, clients):
    merged = fold(strategy, [Update(torch.zeros(SPACE.numel), u.weight) for u in updates(clients)]).finalize()
    assert torch.equal(merged, torch.zeros(SPACE.numel))


@every_strategy
@every_cohort
@pytest.mark.parametrize("kind", ["normal", "ternary", "huge"])
def test_a_merge_is_a_finite_float32_delta_between_the_clients(strategy, clients, kind):
    cohort = updates(clients, kind)
    merged = fold(strategy, cohort).finalize()
    assert merged.dtype == torch.float32 and merged.shape == (SPACE.numel,) and torch.isfinite(merged).all()
    stacked = torch.stack([u.delta for u in cohort] + [torch.zeros(SPACE.numel)])
    slack = 1 + 1e-6
    assert (merged <= stacked.amax(0) * slack).all() and (merged >= stacked.amin(0) * slack).all()


@every_strategy
def test_a_lift_is_float64_of_a_size_that_no_client_changes_and_leaves_its_update_alone(strategy):
    cohort = updates(4) + updates(4, "ternary")
    before = [u.delta.clone() for u in cohort]
    folded, shapes = Fold(strategy, Context(SPACE)), set()
    for update in cohort:
        lifted = strategy.lift(update, Context(SPACE))
        assert all(tensor.dtype == torch.float64 for tensor in lifted.values())
        shapes.add(tuple((name, tensor.shape) for name, tensor in sorted(lifted.items())))
        folded.accumulate(update)
        folded.finalize().add_(1)
    assert len(shapes) == 1
    assert all(torch.equal(u.delta, kept) for u, kept in zip(cohort, before, strict=True))
    assert_same(folded, fold(strategy, cohort), exact=True)


@every_strategy
def test_merging_copies_and_an_empty_branch_adds_nothing(strategy):
    cohort = updates(4)
    root, branch = Fold(strategy, Context(SPACE)), fold(strategy, cohort[:2])
    root.merge(Fold(strategy, Context(SPACE)))
    root.merge(branch)
    root.merge(Fold(strategy, Context(SPACE)))
    kept = fold(strategy, cohort[:2])
    branch.accumulate(cohort[2])
    assert_same(root, kept, exact=True)
    assert_same(branch, fold(strategy, cohort[:3]), exact=True)


@every_strategy
def test_a_branch_of_another_strategy_or_space_is_refused(strategy):
    other = next(s for s in STRATEGIES if s != strategy)
    elsewhere = Space((Slot("a", (SPACE.numel,), "lora_A"),))
    for branch in (fold(other, updates(2)), fold(strategy, updates(2, space=elsewhere), elsewhere)):
        with pytest.raises(ValueError, match=r"cannot add a total of \w+\("):
            fold(strategy, updates(2)).merge(branch)


@every_strategy
def test_a_fold_can_be_written_down_and_taken_up(strategy):
    cohort = updates(6)
    half = fold(strategy, cohort[:3])
    again = Fold(strategy, Context(SPACE), {name: tensor.clone() for name, tensor in half.total.items()})
    for update in cohort[3:]:
        again.accumulate(update)
    assert_same(again, fold(strategy, cohort), exact=True)


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=repr)
def test_a_tied_election_makes_no_step(strategy):
    x = torch.linspace(-2, 2, SPACE.numel)
    assert not fold(strategy, [Update(x, 3.0), Update(-x, 3.0)]).finalize().any()
    assert torch.equal(fold(strategy, [Update(x, 3.0), Update(-x, 3.0), Update(0 * x, 99.0)]).finalize(), 0 * x)


def test_an_election_by_head():
    space = Space((Slot("a", (4,), "head"),))
    rows = [[4.0, 1.0, -1.0, 0.0], [-1.0, 1.0, -1.0, 0.0], [-1.0, -3.0, 0.0, 2.0]]
    cohort = [Update(torch.tensor(row)) for row in rows]
    merged = {s: fold(s, cohort, space).finalize().tolist() for s in STRATEGIES[1:]}
    assert merged[SignElection("sum", "agreeing")] == [4.0, -3.0, -1.0, 2.0]
    assert merged[SignElection("count", "agreeing")] == [-1.0, 1.0, -1.0, 2.0]
    assert merged[SignElection("sum", "all")] == pytest.approx([4 / 3, -1.0, -2 / 3, 2 / 3])
    assert merged[SignElection("count", "all")] == pytest.approx([-2 / 3, 2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignElection("total"), "elect must be 'sum' or 'count', got 'total'"),
        (lambda: SignElection(average="mean"), "average must be 'agreeing' or 'all', got 'mean'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_memory_does_not_grow_with_the_cohort():
    sizes = {}
    for clients in (1, 128):
        total = fold(SignElection(), updates(clients)).total
        sizes[clients] = sum(tensor.untyped_storage().nbytes() for tensor in total.values())
    assert sizes[1] == sizes[128] == 8 * (4 * SPACE.numel + 1)
    reduced = reduce(lambda a, b: (a.merge(b), a)[1], [fold(SignElection(), [u]) for u in updates(9)])
    assert sum(t.untyped_storage().nbytes() for t in reduced.total.values()) == sizes[1]
