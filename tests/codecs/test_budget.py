"""A budget: never more bytes than it allows, nearly all of them, and no fixed codec with less error for them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import wire
from fedpeft.codecs import Block4, Budget, Codec, Context, DeadZone, Numbers, Symbols, Ternary, Uniform, take
from fedpeft.codecs.allocation import NOTHING, hull, levels, offers, price
from fedpeft.errors import PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, every_delta, header, normal, without_type_checks

SLOTS = (Slot("0.lora_A", (8, 400), "lora_A"), Slot("0.lora_B", (300, 8), "lora_B"), Slot("head", (20, 100), "head"))
ADAPTER = Space(SLOTS)


def payload(codec: Codec, delta: torch.Tensor, space: Space = ADAPTER) -> bytes:
    return wire.pack(header(codec, space), codec.encode(delta, space, CONTEXT))


def error(codec: Codec, delta: torch.Tensor, space: Space = ADAPTER) -> float:
    decoded = codec.decode(codec.encode(delta, space, CONTEXT), space, CONTEXT)
    return float((delta - decoded).norm() / delta.norm())


@every_delta
@pytest.mark.parametrize("error", ["absolute", "relative"])
@pytest.mark.parametrize("most", [360, 500, 1000, 3000, 9000])
def test_a_payload_is_never_larger(name: str, error: str, most: int) -> None:
    codec = Budget(most, error=error)
    assert len(payload(codec, DELTAS[name](LARGE), LARGE)) <= most


@pytest.mark.parametrize("most", [1000, 2000, 4000, 6000])
def test_nearly_all_of_the_budget_is_spent(most: int) -> None:
    assert len(payload(Budget(most), normal(ADAPTER))) > 0.94 * most


RIVALS = [Ternary(density) for density in (0.02, 0.05, 0.1, 0.2, 0.5)]
RIVALS += [Ternary(0.1, context=True), Ternary(0.2, threshold="global"), DeadZone(2.0, "mean"), DeadZone(1.0, "mean")]


@pytest.mark.parametrize("rival", [*RIVALS, Uniform(2), Uniform(3), Block4()], ids=repr)
def test_no_codec_has_less_error_at_the_bytes_that_it_takes(rival: Codec) -> None:
    x = normal(ADAPTER)
    codec = Budget(len(payload(rival, x)), scale="mean")
    assert error(codec, x) < 1.02 * error(rival, x)


@pytest.mark.parametrize("most", [2000, 5000, 9000, 20_000])
@pytest.mark.parametrize("freedom", [2, 3])
def test_heavy_tails_are_spent_on_too_and_within_the_budget(freedom: float, most: int) -> None:
    space = Space((Slot("a", (40_000,), "head"),))
    x = torch.from_numpy(np.random.default_rng(1).standard_t(freedom, space.numel)).float()
    size = len(payload(Budget(most), x, space))
    # One slot has few offers to choose from, and `DeadZone` moves its points to where such numbers are.
    assert 0.6 * most < size <= most
    for rival, tolerance in ((Ternary(0.1), 1.02), (DeadZone(1.0, "mean"), 1.2)):
        codec = Budget(len(payload(rival, x, space)), scale="mean")
        assert error(codec, x, space) < tolerance * error(rival, x, space)


def test_rare_levels_cost_what_the_wire_takes_for_them() -> None:
    space = Space((Slot("a", (1_000_000,), "head"),))
    x = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], space.numel)).float()
    x[:150] = torch.arange(150).remainder(119) + 1.0
    for most in (120_000, 126_236, 130_000):
        assert len(payload(Budget(most), x, space)) <= most


def test_the_largest_numbers_are_decoded() -> None:
    x = normal(ADAPTER)
    x[7] = 3.3e38
    assert torch.isfinite(Budget(5000).decode(Budget(5000).encode(x, ADAPTER, CONTEXT), ADAPTER, CONTEXT)).all()


def test_an_absolute_error_is_spent_on_large_slots_and_a_relative_one_on_all() -> None:
    x = normal(ADAPTER)
    ADAPTER.view(x, "0.lora_B").mul_(1e-3)
    sent = {}
    for kind in ("absolute", "relative"):
        codec = Budget(1500, error=kind)
        parts = codec.encode(x, ADAPTER, CONTEXT)
        decoded, chosen = codec.decode(parts, ADAPTER, CONTEXT), codec.chosen(parts, ADAPTER, CONTEXT)
        for slot in SLOTS:
            kept = int(ADAPTER.view(decoded, slot.name).count_nonzero())
            assert chosen[slot.name].density == pytest.approx(kept / slot.numel)
            assert (chosen[slot.name].kind == "nothing") == (not kept)
        sent[kind] = int(ADAPTER.view(decoded, "0.lora_B").count_nonzero())
    assert 20 * sent["absolute"] < sent["relative"]


@given(seed=st.integers(0, 1 << 30), size=st.integers(1, 2000), share=st.floats(0.3, 1.1))
@settings(max_examples=60)
def test_an_offer_is_what_it_says(seed: int, size: int, share: float) -> None:
    x = np.random.default_rng(seed).standard_t(3, size).astype(np.float32)
    found = offers(x)
    best = hull(found, share)
    assert best[0].step == NOTHING and best[0].error == pytest.approx(float(np.square(x, dtype=np.float64).sum()))
    for offer in found:
        level = levels(x, offer).astype(np.float64)
        inner, square = float(level @ x), float(level @ level)
        measured = float(np.square(x, dtype=np.float64).sum()) - (inner**2 / square if square else 0.0)
        assert measured == pytest.approx(offer.error, rel=1e-2, abs=1e-6 * best[0].error)
        # Nothing is below the hull.
        prices = [price(corner, share) for corner in best]
        if price(offer, share) <= prices[-1]:
            assert offer.error >= np.interp(price(offer, share), prices, [c.error for c in best]) - 1e-9 * best[0].error


def test_levels_that_do_not_fit_what_is_kept_are_refused() -> None:
    codec = Budget(5000)
    parts = dict(codec.encode(normal(ADAPTER), ADAPTER, CONTEXT))
    codes = take(parts, "level", Symbols)
    with pytest.raises(PayloadError, match=rf"expected {codes.values.size} levels, got {codes.values.size - 1}"):
        codec.decode(parts | {"level": Symbols(codes.values[1:], codes.levels)}, ADAPTER, CONTEXT)
    with pytest.raises(PayloadError, match=rf"expected {codes.values.size} levels, got {2 * codes.values.size}"):
        codec.decode(parts | {"level": Symbols(codes.values.repeat(2), codes.levels)}, ADAPTER, CONTEXT)
    with pytest.raises(PayloadError, match="level 127 of the largest scale is not finite"):
        codec.decode(parts | {"largest": Numbers(np.array([3e38], np.float32))}, ADAPTER, CONTEXT)


def test_what_cannot_be_sent_within_the_budget_is_not_sent() -> None:
    codec = Budget(10)
    decoded = codec.decode(codec.encode(normal(ADAPTER), ADAPTER, CONTEXT), ADAPTER, Context(5, 3, 2))
    assert not decoded.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(0), "bytes_per_round must be a positive whole number, got 0"),
        (lambda: Budget(2.5), "bytes_per_round must be a positive whole number, got 2.5"),
        (lambda: Budget(99, error="squared"), "error must be 'absolute' or 'relative', got 'squared'"),
        (lambda: Budget(99, scale="max"), "scale must be 'mean', 'norm' or 'unbiased', got 'max'"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
