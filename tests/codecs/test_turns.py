"""Turns: what a group names is sent in its round, bit for bit, and nothing else ever."""

import pytest
import torch

from fedpeft.codecs import Context, ErrorFeedback, Identity, Ternary, Turns, parse
from fedpeft.space import Slot, Space
from tests.codecs.examples import without_type_checks

FACTORS = [Slot(f"{i}.lora_{ab}.weight", (4, 3), f"lora_{ab}") for i in range(2) for ab in "AB"]
SPACE = Space((*FACTORS, Slot("score.weight", (5,), "head")))
X = torch.arange(1.0, SPACE.numel + 1)


def sent(codec: Turns, number: int) -> set[str]:
    ctx = Context(round=number)
    decoded = codec.decode(codec.encode(X, SPACE, ctx), SPACE, ctx)
    whole = {slot.name for slot in SPACE.slots if torch.equal(SPACE.view(decoded, slot.name), SPACE.view(X, slot.name))}
    nothing = {slot.name for slot in SPACE.slots if not SPACE.view(decoded, slot.name).any()}
    assert whole | nothing == {slot.name for slot in SPACE.slots}
    assert whole == {slot.name for slot in codec.carried(SPACE, ctx).slots}
    return whole


def test_roles_and_patterns_name_slots_in_turn() -> None:
    b, head = {"0.lora_B.weight", "1.lora_B.weight"}, {"score.weight"}
    assert sent(Turns(Identity()), 1) == sent(Turns(Identity()), 2) == b | head
    by_turns = Turns(Identity(), ("lora_B head", "0.* head"))
    assert sent(by_turns, 1) == sent(by_turns, 3) == b | head
    assert sent(by_turns, 2) == {"0.lora_A.weight", "0.lora_B.weight"} | head


def test_its_expression_may_be_written_with_a_list() -> None:
    codec = parse("Turns(Ternary(density=0.5), ['lora_B head', 'lora_A'])")
    assert codec == Turns(Ternary(density=0.5), ("lora_B head", "lora_A"))
    assert parse(repr(codec)) == codec and hash(codec) == hash(parse(repr(codec)))


def test_under_error_feedback_what_waits_for_its_turn_is_kept() -> None:
    feedback = ErrorFeedback(Turns(Identity(), ("lora_B head", "lora_A")))
    _, residual = feedback.encode(X, torch.zeros_like(X), SPACE, Context(round=1))
    roles = {slot.role for slot in SPACE.slots if SPACE.view(residual, slot.name).any()}
    assert roles == {"lora_A"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Turns(Identity(), ("lora_C",)).layout(SPACE), "'lora_C' names no slot of this adapter, whose roles"),
        (lambda: Turns(Identity(), ()), "expected groups of roles"),
        (lambda: Turns(Identity(), (" ",)), "expected groups of roles"),
        (lambda: Turns("Ternary()"), "codec must be a codec"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
