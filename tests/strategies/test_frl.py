"""RankVote beside the authors' procedure, and elections of rank-1 components by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedpeft import ranking
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Mean, RankAllocation, RankVote, Strategy, Update, rank_votes
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, START, updates

ROW = Space((Slot("a", (4,), "head"),))


def by_the_procedure(rows, sorted_scores):
    """Algorithm 1 with numpy: clients send argsort, the server sorts the sum of its inverses."""
    sent = [np.argsort(row, kind="stable") for row in rows]
    total = sum(np.argsort(order, kind="stable") for order in sent)
    out = np.empty(len(total))
    out[np.argsort(total, kind="stable")] = sorted_scores
    return out


@pytest.mark.parametrize("clients", [1, 2, 5, 128])
@pytest.mark.parametrize("kind", ["normal", "ternary", "huge", "zero"])
def test_the_authors_procedure_slot_by_slot(clients, kind):
    cohort = updates(clients, kind)
    if kind == "zero":
        cohort = [Update(torch.zeros(SPACE.numel)) for _ in range(clients)]
    merged = START + RankVote().merge(cohort, Context(SPACE, START))
    for slot in SPACE.slots:
        if slot.numel:
            rows = [SPACE.view(START + u.delta, slot.name).flatten().numpy() for u in cohort]
            levels = (2 * np.arange(slot.numel) + 1) / slot.numel - 1
            expected = by_the_procedure(rows, levels)
            assert np.allclose(SPACE.view(merged, slot.name).flatten().numpy(), expected, rtol=0, atol=1e-6)


def test_a_vote_by_hand_with_ties_by_place():
    rows = [[0.1, 0.2, 0.3, 0.4], [7.0, 5.0, 5.0, -9.0]]  # ranks 0 1 2 3 and 3 1 2 0: sums 3 2 4 3
    merged = RankVote().merge([Update(torch.tensor(row)) for row in rows], Context(ROW))
    assert merged.tolist() == [-0.25, -0.75, 0.75, 0.25]


def test_one_client_has_one_vote_however_heavy_or_far_it_is():
    honest = [Update(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1.0)] * 2
    loud = Update(torch.tensor([4e30, 3e30, 2e30, 1e30]), 1e6)
    assert RankVote().merge([*honest, loud], Context(ROW)).tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_a_score_says_the_rank_again_even_in_fp16():
    space = Space((Slot("a", (1000,), "head"), Slot("b", (), "head"), Slot("c", (0,), "head")))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(space.numel)).float()
    scores = ranking.scores(x, space)
    assert torch.equal(ranking.ranks(scores.half().float(), space), ranking.ranks(x, space))
    assert torch.equal(ranking.scores(scores, space), scores) and scores[-1] == 0
    assert -1 < scores.min() < scores.max() < 1


def lora(*modules):
    slots = [Slot("score.weight", (2, 2), "head")]
    for name, rank in modules:
        slots.append(Slot(f"{name}.lora_A.weight", (rank, 5), "lora_A"))
        slots.append(Slot(f"{name}.lora_B.weight", (3, rank), "lora_B"))
    return Space(tuple(slots))


def adapter(space, norms):
    """An adapter whose components have these norms, by module, and that is one elsewhere."""
    x = torch.ones(space.numel)
    for name, wanted in norms.items():
        a, b = (space.view(x, f"{name}.lora_{ab}.weight") for ab in "AB")
        a.copy_(torch.nn.functional.normalize(torch.ones_like(a), dim=1) * 2)
        b.copy_(torch.nn.functional.normalize(torch.ones_like(b), dim=0) * torch.tensor(wanted) / 2)
    return x


def test_components_are_elected_over_all_modules():
    space = lora(("m", 3), ("n", 2))
    cohort = [
        Update(adapter(space, {"m": [9.0, 8.0, 0.0], "n": [1.0, 2.0]}), 1.0),
        Update(adapter(space, {"m": [9.0, 1.0, 0.0], "n": [3.0, 4.0]}), 1e6),
        Update(adapter(space, {"m": [5.0, 3.0, 0.1], "n": [2.0, 1.0]}), 1.0),
    ]
    assert rank_votes(cohort, Context(space), 2) == {"m": (0, 1), "n": ()}
    assert rank_votes(cohort, Context(space), 3) == {"m": (0, 1), "n": (0,)}  # a tie of two votes each
    assert rank_votes(cohort, Context(space), 99) == {"m": (0, 1, 2), "n": (0, 1)}


@pytest.mark.parametrize("start", [None, 0.5])
def test_what_lost_is_off_and_all_else_is_the_strategys(start):
    space = lora(("m", 3), ("n", 2))
    begin = None if start is None else torch.full((space.numel,), start)
    ctx = Context(space, begin)
    whole = adapter(space, {"m": [9.0, 0.0, 7.0], "n": [1.0, 8.0]})
    cohort = [Update(ctx.delta(whole), 2.0), Update(ctx.delta(1.5 * whole), 1.0)]
    plain = ctx.adapter(Update(Mean().merge(cohort, ctx)))
    pruned = ctx.adapter(Update(RankAllocation(Mean(), keep=0.6).merge(cohort, ctx)))
    assert rank_votes(cohort, ctx, 3) == {"m": (0, 2), "n": (1,)}
    for name, lost in (("m.lora_B.weight", [1]), ("n.lora_B.weight", [0])):
        space.view(plain, name)[:, lost] = 0
    assert torch.equal(pruned, plain)


@dataclass(frozen=True)
class First(Strategy):
    """The first update as it is: no sum."""

    def merge(self, updates, ctx):
        return updates[0].delta.clone()


def test_a_strategy_that_is_no_sum_may_be_inside():
    cohort, ctx = updates(5), Context(SPACE, START)
    assert not RankAllocation(First()).additive and RankAllocation(TIES()).additive
    merged = RankAllocation(First(), keep=0.5).merge(cohort, ctx)
    kept = rank_votes(cohort, ctx, 3)
    for slot in SPACE.slots:
        expected = SPACE.view(cohort[0].delta, slot.name).clone()
        if slot.role == "lora_B":
            lost = [j for j in range(3) if j not in kept[slot.name.partition(".lora_B")[0]]]
            expected[:, lost] = -SPACE.view(START, slot.name)[:, lost]
        assert torch.equal(SPACE.view(merged, slot.name), expected)
    assert sum(map(len, kept.values())) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankAllocation(Mean(), keep=0), r"keep must lie in \(0, 1\], got 0"),
        (lambda: RankAllocation(Mean(), keep=1.5), r"keep must lie in \(0, 1\], got 1.5"),
        (lambda: RankAllocation("Mean"), "RankAllocation: strategy must be a strategy, got 'Mean'"),
        (lambda: rank_votes(updates(3), Context(SPACE), 0), "budget must be at least 1, got 0"),
        (lambda: rank_votes([Update(torch.ones(4))], Context(ROW), 1), "need a LoRA module; the adapter has the slots"),
        (lambda: RankAllocation(Mean()).merge([Update(torch.ones(4))], Context(ROW)), "need a LoRA module"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
