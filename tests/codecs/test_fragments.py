"""Fragments: every slot in its turn, whole modules, and nothing from a fragment whose turn it is not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.codecs import (
    Context,
    ErrorFeedback,
    Fragments,
    Identity,
    Numbers,
    RandomMask,
    Ternary,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.codecs.clip import Clip
from fedpeft.errors import PayloadError
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, SPACE, normal, there_and_back, without_type_checks

ROUNDS = [replace(CONTEXT, round=number) for number in range(1, 4)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_coordinate_is_sent_once_in_as_many_rounds_as_there_are_fragments(count: int) -> None:
    codec, x = Fragments(Identity(), count), normal(SPACE)
    rounds = [there_and_back(codec, x, ctx=ctx) for ctx in ROUNDS[:count]]
    assert torch.equal(torch.stack(rounds).sum(0), x)
    for sent, ctx in zip(rounds, ROUNDS, strict=False):
        carried = codec.carried(SPACE, ctx)
        for slot in SPACE.slots:
            whole = SPACE.view(x, slot.name) if slot in carried.slots else torch.zeros(slot.shape)
            assert torch.equal(SPACE.view(sent, slot.name), whole)


@given(widths=st.lists(st.integers(0, 30), min_size=1, max_size=12), count=st.integers(1, 5))
def test_fragments_are_of_whole_modules_and_nearly_equal_in_size(widths: list[int], count: int) -> None:
    slots = [Slot(f"m.{i:02}.lora_{ab}.weight", (w, 2), f"lora_{ab}") for i, w in enumerate(widths) for ab in "AB"]
    space, codec = Space(tuple(slots)), Fragments(Identity(), count)
    count = min(count, len(widths))
    fragments = [codec.carried(space, Context(round=number)) for number in range(1, count + 1)]
    assert sorted(slot for fragment in fragments for slot in fragment.slots) == sorted(slots)
    for fragment in fragments:
        names = [slot.name.partition(".lora_")[0] for slot in fragment.slots]
        assert all(names.count(name) == 2 for name in names)
    sizes = [fragment.numel for fragment in fragments]
    assert max(sizes) - min(sizes) <= 4 * max(widths)


def test_the_codec_works_in_the_space_of_the_fragment() -> None:
    x, codec = normal(SPACE), Fragments(per_slot({"lora_A": Uniform(bits=8)}, default=Ternary(density=0.5)), 2)
    for ctx in ROUNDS[:2]:
        fragment = codec.carried(SPACE, ctx)
        inside = torch.cat([SPACE.view(x, slot.name).reshape(-1) for slot in fragment.slots])
        sent = there_and_back(codec, x, ctx=ctx)
        kept = torch.cat([SPACE.view(sent, slot.name).reshape(-1) for slot in fragment.slots])
        assert torch.equal(kept, there_and_back(codec.codec, inside, fragment, ctx))


def test_parts_of_another_round_s_fragment_are_refused() -> None:
    codec, x = Fragments(Identity(), 3), normal(SPACE)
    with pytest.raises(PayloadError, match=r"part 'values': expected \d+, got \d+"):
        codec.decode(codec.encode(x, SPACE, ROUNDS[0]), SPACE, ROUNDS[1])
    with pytest.raises(PayloadError, match="expected 0, got 1"):
        parts = dict(codec.encode(x, SPACE, ROUNDS[0]))
        codec.decode(parts | {"more": Numbers(x[:1].numpy())}, SPACE, ROUNDS[0])


def test_error_feedback_keeps_what_waits_for_its_turn() -> None:
    feedback, x = ErrorFeedback(Fragments(Identity(), 3)), normal(SPACE)
    residual, sent = torch.zeros_like(x), torch.zeros_like(x)
    for ctx in ROUNDS:
        parts, residual = feedback.encode(x, residual, SPACE, ctx)
        sent += feedback.codec.decode(parts, SPACE, ctx)
    assert torch.allclose(sent + residual, 3 * x)
    last = feedback.codec.carried(SPACE, ROUNDS[2])
    assert all(not SPACE.view(residual, slot.name).any() for slot in last.slots)


def test_what_is_carried_is_seen_through_other_codecs() -> None:
    fragments = Fragments(Identity(), 3)
    assert chain(Clip(1.0), fragments).carried(SPACE, ROUNDS[1]) == fragments.carried(SPACE, ROUNDS[1])
    assert RandomMask(0.5).carried(SPACE, ROUNDS[1]) == SPACE
    mixed = per_slot({"head": Identity()}, default=Fragments(Identity(), 2))
    carried = {slot.name for slot in mixed.carried(SPACE, ROUNDS[0]).slots}
    assert carried == {slot.name for slot in SPACE.slots if slot.role == "head" or ".0." in slot.name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fragments(Clip(1.0)), r"codec must be a codec, got Clip\(norm=1.0\)"),
        (lambda: Fragments(Identity(), 0), "count must be at least 1, got 0"),
        (lambda: Fragments(Identity(), True), "count must be at least 1, got True"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
