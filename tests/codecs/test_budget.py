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
from tests.codecs.examples import CONTEXT, DELTAS, LARGE, header, normal, without_type_checks

SLOTS = (Slot("0.lora_A", (8, 400), "lora_A"), Slot("0.lora_B", (300, 8), "lora_B"), Slot("head", (20, 100), "head"))
ADAPTER = Space(SLOTS)


def payload(codec: Codec, delta: torch.Tensor, space: Space = ADAPTER) -> bytes:
    return wire.pack(header(codec, space), codec.encode(delta, space, CONTEXT))


def error(codec: Codec, delta: torch.Tensor, space: Space = ADAPTER) -> float:
    decoded = codec.decode(codec.encode(delta, space, CONTEXT), space, CONTEXT)
    return float((delta - decoded).norm() / delta.norm())


@pytest.mark.parametrize("name", DELTAS)
@pytest.mark.parametrize("error", ["absolute", "relative"])
@pytest.mark.parametrize("most", [360, 500, 1000, 3000, 9000])
def test_a_payload_is_never_larger(name: str, error: str, most: int) -> None:
    codec = Budget(most, error=error)
    assert len(payload(codec, DELTAS[name](LARGE), LARGE)) <= most


@pytest.mark.parametrize("most", [1000, 2000, 4000, 6000])
def test_nearly_all_of_the_budget_is_spent(most: int) -> None:
    assert len(payload(Budget(most), normal(ADAPTER))) > 0.95 * most


RIVALS = [Ternary(density) for density in (0.02, 0.05, 0.1, 0.2, 0.5)]
RIVALS += [Ternary(0.1, context=True), Ternary(0.2, threshold="global"), DeadZone(2.0, "mean"), DeadZone(1.0, "mean")]


@pytest.mark.parametrize("rival", [*RIVALS, Uniform(2), Uniform(3), Block4()], ids=repr)
def test_no_codec_has_less_error_at_the_bytes_that_it_takes(rival: Codec) -> None:
    x = normal(ADAPTER)
    codec = Budget(len(payload(rival, x)), scale="mean")
    assert error(codec, x) < 1.02 * error(rival, x)


def test_an_absolute_error_is_spent_on_large_slots_and_a_relative_one_on_all() -> None:
    x = normal(ADAPTER)
    ADAPTER.view(x, "0.lora_B").mul_(1e-3)
    for kind, expected in (("absolute", True), ("relative", False)):
        codec = Budget(1500, error=kind)
        parts = codec.encode(x, ADAPTER, CONTEXT)
        assert (codec.chosen(parts, ADAPTER)["0.lora_B"] == "nothing") == expected
        assert bool(ADAPTER.view(codec.decode(parts, ADAPTER, CONTEXT), "0.lora_B").any()) != expected


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
    with pytest.raises(PayloadError, match=rf"expected \d+ levels or more, got {codes.values.size - 1}"):
        codec.decode(parts | {"level": Symbols(codes.values[1:], codes.levels)}, ADAPTER, CONTEXT)
    with pytest.raises(
        PayloadError, match=rf"expected {codes.values.size} levels or more, got {2 * codes.values.size}"
    ):
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
