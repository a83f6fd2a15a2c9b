"""Frank-Wolfe on quadratics whose best mixture is known."""

from collections.abc import Sequence

import pytest
import torch

from fedpeft.strategies import Context, Mean, Update, frank_wolfe
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, START, updates

STARTED = Context(SPACE, START)


def towards(target):
    """The gradient of |adapter - target|^2 / 2."""
    return lambda adapter: adapter - target


class Counted(Sequence):
    """Updates that count how often all of them are read."""

    def __init__(self, updates):
        self.updates, self.read = updates, 0

    def __iter__(self):
        self.read += 1
        return iter(self.updates)

    def __len__(self):
        return len(self.updates)

    def __getitem__(self, i):
        return self.updates[i]


def mixture(updates, shares):
    return sum(u.delta.double() * s for u, s in zip(updates, shares, strict=True)).float()


@pytest.mark.parametrize("ctx", [Context(SPACE), STARTED], ids=["zero", "started"])
def test_the_best_mixture_of_a_quadratic_is_found(ctx):
    cohort = updates(5)
    best = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
    target = mixture(cohort, best) + (0 if ctx.start is None else ctx.start)
    found = frank_wolfe(cohort, ctx, towards(target), iterations=4000)
    assert torch.allclose(found.shares[:, 0].float(), best, atol=0.02)
    assert torch.allclose(found.delta, mixture(cohort, best), atol=0.05)
    assert 0 <= found.gap < 0.1


@pytest.mark.parametrize("choose", ["update", "slot"])
def test_the_gap_bounds_what_is_left_to_gain(choose):
    cohort = updates(6)
    target = mixture(cohort, [0.4, 0.0, 0.6, 0.0, 0.0, 0.0])
    seen = []

    def gradient(adapter):
        seen.append(float((adapter - target).square().sum() / 2))
        return adapter - target

    for iterations in (1, 5, 50):
        found = frank_wolfe(cohort, Context(SPACE), gradient, iterations=iterations, choose=choose)
        assert seen[-1] <= found.gap + 1e-4
        assert (found.shares >= 0).all()
        assert torch.allclose(found.shares.sum(0), torch.ones(len(SPACE.slots), dtype=torch.float64))


def test_an_update_that_is_best_alone_is_taken_at_once():
    cohort = updates(7)
    found = frank_wolfe(cohort, Context(SPACE), towards(3 * cohort[4].delta), iterations=1)
    assert torch.allclose(found.delta, cohort[4].delta)
    assert found.shares[4].tolist() == [1.0] * len(SPACE.slots)


def test_slots_can_come_from_different_updates():
    one, other = updates(2)
    target = one.delta.clone() * 3
    SPACE.view(target, "m.score.weight").copy_(3 * SPACE.view(other.delta, "m.score.weight"))
    found = frank_wolfe([one, other], Context(SPACE), towards(target), iterations=300, choose="slot")
    for slot, shares in zip(SPACE.slots, found.shares.T, strict=True):
        if slot.numel > 5:
            assert float(shares[int(slot.name == "m.score.weight")]) > 0.95
    again = torch.cat(
        [
            sum(s * SPACE.view(u.delta, slot.name).reshape(-1) for s, u in zip(shares, (one, other), strict=True))
            for slot, shares in zip(SPACE.slots, found.shares.T, strict=True)
        ]
    )
    assert torch.allclose(found.delta, again.float(), atol=1e-5)


def test_a_short_step_begins_near_the_mean():
    cohort = updates(5)
    found = frank_wolfe(cohort, Context(SPACE), towards(torch.zeros(SPACE.numel)), iterations=1, step=1e-6)
    assert torch.allclose(found.delta, Mean().merge(cohort, Context(SPACE)), atol=1e-4)


@pytest.mark.parametrize("choose", ["update", "slot"])
@pytest.mark.parametrize("far", [1.0, 10.0, 1000.0])
def test_a_far_update_is_stepped_to_no_sooner_than_others(far, choose):
    """The best mixture leaves it out."""
    cohort = updates(6)
    target = mixture(cohort, [0.0, 0.5, 0.3, 0.2, 0.0, 0.0])
    cohort[0] = Update(cohort[0].delta * far)
    others = [Update(u.delta) for u in cohort[1:]]
    with_it, without = (
        frank_wolfe(some, Context(SPACE), towards(target), iterations=40, choose=choose) for some in (cohort, others)
    )
    missed = [float((found.delta - target).norm() / target.norm()) for found in (with_it, without)]
    assert missed[0] <= 2 * missed[1]


@pytest.mark.parametrize("noise", [0.0, 1e-4])
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("alike", [1, 4])
def test_many_updates_that_are_alike_do_not_hold_back_the_other(alike, share, noise):
    """The median distance is none or next to none where the mixture stands at them."""
    other, (drawn,) = Update(torch.ones(SPACE.numel)), updates(1)
    cohort = [other, *(Update(noise * i * drawn.delta) for i in range(alike))]
    found = frank_wolfe(cohort, Context(SPACE), towards(share * other.delta), iterations=300)
    assert torch.allclose(found.delta, share * other.delta, atol=0.02)


def test_an_iteration_reads_every_update_once():
    counted = Counted(updates(5))
    one, other = (frank_wolfe(counted, Context(SPACE), towards(torch.ones(SPACE.numel)), iterations=3) for _ in "ab")
    assert counted.read == 2 * (1 + 3)
    assert torch.equal(one.delta, other.delta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frank_wolfe([], STARTED, towards(START)), "nothing to merge"),
        (
            lambda: frank_wolfe(updates(2), STARTED, towards(START), iterations=0),
            "iterations must be at least 1, got 0",
        ),
        (lambda: frank_wolfe(updates(2), STARTED, towards(START), step=1.5), r"step must lie in \(0, 1\], got 1.5"),
        (lambda: frank_wolfe(updates(2), STARTED, towards(START), choose="task"), "choose must be .* got 'task'"),
        (lambda: frank_wolfe(updates(2), STARTED, lambda a: a * float("nan")), r"gradient must return \(.* finite"),
        (lambda: frank_wolfe(updates(2), STARTED, lambda a: a[1:]), r"gradient must return \(.* got shape"),
        (lambda: frank_wolfe([Update(START[1:])], STARTED, towards(START)), "expected a delta of shape"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
