"""Which coordinates RandomMask and PublicSupport draw, and what they make of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.codecs import (
    DCT,
    Context,
    ErrorFeedback,
    Fragments,
    Identity,
    Numbers,
    PublicSupport,
    RandomMask,
    Rotated,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, normal, there_and_back, without_type_checks

ROW = Space((Slot("a", (1000,), "head"),))


def drawn(codec, space, ctx=CONTEXT):
    """Which coordinates a codec keeps."""
    return there_and_back(codec, torch.ones(space.numel), space, ctx) != 0


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.3, 0.5, 0.77, 0.999, 1.0])
@pytest.mark.parametrize("kind", [RandomMask, PublicSupport])
def test_exactly_as_many_as_the_density_says(density, kind):
    for space in (SPACE, LARGE):
        mask = drawn(kind(density, Identity()), space)
        for slot, (begin, end) in zip(space.slots, pairwise(space.bounds), strict=True):
            assert mask[begin:end].sum() == min(slot.numel, max(1, round(density * slot.numel)))


def by_hand(words, n, k):
    """The coordinates that words draw, in whole numbers of Python's."""
    first, *draws = map(int, words)
    edges = pairwise(i * n // k for i in range(k + 1))
    return [((first * n >> 32) + a + (word * (b - a) >> 32)) % n for word, (a, b) in zip(draws, edges, strict=True)]


@pytest.mark.parametrize("k", [1, 7, 300, 501, 1000])
def test_the_draw_is_what_it_says(k):
    codec = PublicSupport(k / 1000)
    places = by_hand(CONTEXT.shared.words(k + 1), 1000, k)
    assert len(set(places)) == k
    x = normal(ROW)
    parts = codec.encode(x, ROW, CONTEXT)
    assert np.array_equal(parts["values"].values, x.numpy()[places])
    expected = torch.zeros(1000)
    expected[places] = x[places]
    assert torch.equal(codec.decode(parts, ROW, CONTEXT), expected)


@pytest.mark.parametrize("k", [1, 64, 99])
def test_every_coordinate_is_as_likely_as_any_other(k):
    space, rounds = Space((Slot("a", (100,), "head"),)), 4000
    counts = sum(drawn(PublicSupport(k / 100), space, Context(7, r, 1)).double() for r in range(1, rounds + 1))
    deviation = (rounds * k / 100 * (1 - k / 100)) ** 0.5
    assert ((counts - rounds * k / 100).abs() < 4.5 * deviation).all()


def test_sites_share_a_public_support_and_nothing_else():
    here, there, later = Context(5, 3, 1), Context(5, 3, 2), Context(5, 4, 1)
    public, own = PublicSupport(0.1), RandomMask(0.1)
    assert torch.equal(drawn(public, LARGE, here), drawn(public, LARGE, there))
    assert not torch.equal(drawn(public, LARGE, here), drawn(public, LARGE, later))
    assert not torch.equal(drawn(own, LARGE, here), drawn(own, LARGE, there))
    assert not torch.equal(drawn(public, LARGE), drawn(per_slot({}, default=public), LARGE))


def test_encoded_updates_of_many_sites_are_summed():
    codec = PublicSupport(0.2)
    deltas = [normal(LARGE, seed) for seed in range(4)]
    parts = [codec.encode(x, LARGE, Context(5, 3, client)) for client, x in enumerate(deltas)]
    total = {"values": Numbers(np.sum([p["values"].values for p in parts], axis=0, dtype=np.float32))}
    apart = sum(codec.decode(p, LARGE, Context(5, 3, client)) for client, p in enumerate(parts))
    assert torch.allclose(codec.decode(total, LARGE, Context(5, 3, 9)), apart, rtol=1e-6, atol=1e-6)
    assert (apart != 0).sum() <= drawn(codec, LARGE).sum()


@pytest.mark.parametrize("kind", [RandomMask, PublicSupport])
def test_rescaled_by_what_was_dropped_or_not(kind):
    x = normal(LARGE)
    plain, scaled = (there_and_back(kind(0.3, Identity(), rescale), x, LARGE) for rescale in (False, True))
    mask = drawn(kind(0.3, Identity()), LARGE)
    assert torch.equal(plain, torch.where(mask, x, 0))
    for slot, (begin, end) in zip(LARGE.slots, pairwise(LARGE.bounds), strict=True):
        factor = slot.numel / max(1, int(mask[begin:end].sum()))
        assert torch.allclose(scaled[begin:end], plain[begin:end] * factor, rtol=1e-6, atol=0)


def test_kept_values_go_through_the_codec_in_slots_of_their_own():
    x = normal(LARGE)
    codec = RandomMask(0.5, per_slot({"lora_B": Uniform(8)}, default=Identity()), rescale=False)
    y, mask = there_and_back(codec, x, LARGE), drawn(RandomMask(0.5, Identity()), LARGE)
    for slot in LARGE.slots:
        a, b, m = (LARGE.view(v, slot.name) for v in (x, y, mask.float()))
        m = m.bool()
        if slot.role == "lora_B":
            assert not torch.equal(a[m], b[m]) and torch.allclose(a[m], b[m], atol=float(a.abs().max()) / 250)
        else:
            assert torch.equal(a[m], b[m])


def test_rounding_draws_words_of_its_own():
    """Else which coordinates are kept would say which way they are rounded."""
    x, rounds = torch.full((1000,), 0.37), 300
    x[0] = 1.0
    codec = RandomMask(0.5, Uniform(2, stochastic=True))
    seen = torch.stack([there_and_back(codec, x, ROW, Context(5, r, 2)) for r in range(1, rounds + 1)])
    assert (seen[:, 1:].mean(dtype=torch.float64) - 0.37).abs() < 0.01


def test_feedback_with_a_support_that_is_not_scaled_up_forgets_nothing_and_stays_bounded():
    x, residual, total = normal(LARGE), torch.zeros(LARGE.numel), torch.zeros(LARGE.numel)
    feedback = ErrorFeedback(PublicSupport(0.25))
    for number in range(1, 101):
        ctx = Context(5, number, 2)
        parts, residual = feedback.encode(x, residual, LARGE, ctx)
        total += feedback.codec.decode(parts, LARGE, ctx)
    assert residual.norm() < 8 * x.norm() and (total / 100 - x).norm() < 0.08 * x.norm()


@pytest.mark.parametrize("kind", [RandomMask, PublicSupport])
def test_a_value_beyond_float32_is_refused_at_both_ends(kind):
    codec = kind(0.1, Identity(), rescale=True)
    limit = np.finfo(np.float32).max
    with pytest.raises(ValueError, match=r"3.40282e\+38 cannot be scaled up by the inverse of the density 0.1"):
        codec.encode(torch.full((1000,), float(limit)), ROW, CONTEXT)
    with pytest.raises(PayloadError, match="a value over the density 0.1 is not finite") as caught:
        codec.decode({"values": Numbers(np.full(100, limit))}, ROW, CONTEXT)
    assert caught.value.defect == Defect.NON_FINITE


def test_linear_and_unbiased_are_the_codecs():
    assert PublicSupport().linear and not PublicSupport().unbiased and not RandomMask().linear and RandomMask().unbiased
    assert not PublicSupport(codec=Identity("float16")).linear and not PublicSupport(codec=Rotated()).linear
    assert PublicSupport(rescale=True).unbiased and not RandomMask(rescale=False).unbiased
    assert not RandomMask(codec=Identity("bfloat16")).unbiased and not RandomMask(codec=chain(Uniform())).unbiased


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomMask(density=0), r"density must lie in \(0, 1\], got 0"),
        (lambda: PublicSupport(density=1.01), r"density must lie in \(0, 1\], got 1.01"),
        (lambda: RandomMask(codec=None), "RandomMask: codec must be a codec, got None"),
        (lambda: PublicSupport(codec=ErrorFeedback(Identity())), r"PublicSupport: codec must be a codec, got ErrorFee"),
        (lambda: PublicSupport(rescale=1), "rescale must be True or False, got 1"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def elected(codec, moved, space=LARGE, number=3):
    """Which coordinates a codec keeps after the public adapter has moved so."""
    start = normal(space, 9)
    return drawn(codec, space, Context(5, number, 2, start=start + moved, before=start)).numpy()


def test_the_last_step_elects_and_the_rest_is_drawn_from_the_others():
    codec, moved = PublicSupport(0.2, elect="last", explore=0.25), normal(LARGE)
    kept, later = elected(codec, moved), elected(codec, moved, number=4)
    step = ((normal(LARGE, 9) + moved) - normal(LARGE, 9)).abs().numpy()
    for slot, (begin, end) in zip(LARGE.slots, pairwise(LARGE.bounds), strict=True):
        k = min(slot.numel, max(1, round(0.2 * slot.numel)))
        assert kept[begin:end].sum() == k
        if won := k - int(np.ceil(0.25 * k)):
            assert kept[begin + np.argsort(-step[begin:end], kind="stable")[:won]].all()
            assert (kept & later)[begin:end].sum() >= won
        if slot.numel > 500:
            assert (kept & later)[begin:end].sum() < won + 0.2 * k


def test_where_nothing_moved_all_is_drawn_and_without_a_step_as_by_the_seed():
    codec = PublicSupport(0.2, elect="last")
    assert np.array_equal(drawn(codec, LARGE), drawn(PublicSupport(0.2), LARGE))
    still = elected(codec, torch.zeros(LARGE.numel))
    assert still.sum() == drawn(codec, LARGE).sum()
    counts = sum(elected(codec, torch.zeros(1000), ROW, number=r).astype(int) for r in range(1, 301))
    assert abs(counts.mean() - 60) < 0.01 and counts.min() > 25 and counts.max() < 100


def test_an_elected_support_follows_what_moves():
    """A sparse truth: the election finds its coordinates, which a drawn support meets one time in ten."""
    truth = torch.zeros(1000)
    truth[torch.from_numpy(CONTEXT.private.permutation(1000)[:60].copy())] = 1.0
    left = []
    for codec in (PublicSupport(0.1), PublicSupport(0.1, elect="last", explore=0.5)):
        before, public = torch.zeros(1000), torch.zeros(1000)
        for number in range(1, 41):
            ctx = Context(5, number, 1, start=public, before=before if number > 1 else None)
            before, public = public, public + 0.2 * there_and_back(codec, truth - public, ROW, ctx)
        left.append(float((truth - public).norm() / truth.norm()))
    assert left[1] < 0.65 * left[0]


def test_groups_elect_among_their_own_slots():
    codec = PublicSupport(0.2, elect="last", explore=0.25)
    ctx = Context(5, 3, 2, start=normal(LARGE, 9), before=normal(LARGE, 8))
    kept = drawn(per_slot({"lora_A": codec}, default=Identity()), LARGE, ctx).float()
    step = (ctx.start - ctx.before).abs()
    for slot in LARGE.slots:
        own, size = LARGE.view(kept, slot.name).flatten(), LARGE.view(step, slot.name).flatten()
        if slot.role != "lora_A":
            assert own.all()
        else:
            k = round(0.2 * slot.numel)
            assert own.sum() == k and own.bool()[size.argsort(descending=True)[: k - int(np.ceil(0.25 * k))]].all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PublicSupport(elect="vote"), "elect must be 'seed' or 'last', got 'vote'"),
        (lambda: PublicSupport(elect="last", explore=0), r"explore must lie in \(0, 1\], got 0"),
        (lambda: PublicSupport(elect="last", rescale=True), "rescale=True makes up for what is dropped"),
        (lambda: RandomMask(codec=PublicSupport(elect="last")), "reads whole slots, and would get a few coordinates"),
        (lambda: Fragments(PublicSupport(elect="last"), 2), "reads the last round's step, which carried another"),
        (lambda: chain(DCT(), PublicSupport(elect="last")), "reads the adapter, which DCT"),
    ],
)
@without_type_checks()
def test_what_does_not_elect_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
