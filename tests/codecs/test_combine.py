"""Clip, chain, per_slot and ErrorFeedback."""

from dataclasses import dataclass

import pytest
import torch

from fedpeft.codecs import Clip, Codec, Context, ErrorFeedback, Identity, Ternary, Transform, Uniform, chain, per_slot
from fedpeft.space import Slot, Space
from tests.codecs.examples import (
    CODECS,
    CONTEXT,
    DELTAS,
    LARGE,
    SPACE,
    all_bits,
    beyond,
    every_delta,
    normal,
    over,
    there_and_back,
)


@every_delta
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_clip_bounds_the_norm_and_keeps_the_direction(name, norm):
    x = DELTAS[name](SPACE)
    y = Clip(norm).forward(x, SPACE, CONTEXT)
    length = torch.linalg.vector_norm(x, dtype=torch.float64)
    assert torch.linalg.vector_norm(y, dtype=torch.float64) <= norm * (1 + 1e-6)
    if length <= norm:
        assert torch.equal(x, y)
    else:
        assert torch.allclose(y.double(), x.double() * (norm / length), rtol=1e-6, atol=1e-44)
    assert torch.equal(Clip(norm).inverse(y, SPACE, CONTEXT), y)


def test_chain_is_its_steps_in_order():
    x = normal(SPACE) * 100
    codec = chain(Clip(1.0), Clip(0.25), Uniform(4))
    by_hand = Clip(0.25).forward(Clip(1.0).forward(x, SPACE, CONTEXT), SPACE, CONTEXT)
    assert torch.equal(there_and_back(codec, x), there_and_back(Uniform(4), by_hand))
    assert codec.layout(SPACE) == Uniform(4).layout(SPACE)
    assert chain(Ternary()) == Ternary()


@dataclass(frozen=True)
class Roll(Transform):
    """A transform that does not commute with the next."""

    def forward(self, delta, space, ctx):
        return delta.roll(ctx.round)

    def inverse(self, vector, space, ctx):
        return vector.roll(-ctx.round)


@dataclass(frozen=True)
class Ramp(Transform):
    """Powers of two that rise and fall along the vector, so that undoing them is exact."""

    def _factors(self, space):
        return 2.0 ** (torch.arange(space.numel) % 5)

    def forward(self, delta, space, ctx):
        return delta * self._factors(space)

    def inverse(self, vector, space, ctx):
        return vector / self._factors(space)


@pytest.mark.parametrize("steps", [(Roll(),), (Ramp(),), (Roll(), Ramp()), (Ramp(), Roll(), Roll(), Ramp())], ids=repr)
def test_transforms_are_undone_last_first(steps):
    x = normal(SPACE)
    assert torch.equal(there_and_back(chain(*steps, Identity()), x), x)
    assert torch.equal(there_and_back(chain(steps[0], chain(*steps[1:], Identity())), x), x)
    expected = x
    for step in steps:
        expected = step.forward(expected, SPACE, CONTEXT)
    assert all_bits(chain(*steps, Ternary()).encode(x, SPACE, CONTEXT)) == all_bits(
        Ternary().encode(expected, SPACE, CONTEXT)
    )


def encoders(rules, default):
    """Which slot is encoded by which codec, by the name of the part's group."""
    codec = per_slot(rules, default=default)
    return {slot.name: choice for _, choice, group in codec._groups(SPACE) for slot in group.slots}


def test_per_slot_goes_by_role_or_by_glob_and_the_first_that_fits_counts():
    a, b, c, rest = Uniform(2), Uniform(3), Uniform(4), Uniform(5)
    assert encoders({"lora_A": a, "layer.1.*": b, "*.bias": c}, rest) == {
        "layer.0.lora_A": a,
        "layer.0.lora_B": rest,
        "layer.1.lora_A": a,
        "layer.1.lora_B": b,
        "head.bias": c,
        "head.weight": rest,
        "temperature": rest,
        "unused": rest,
    }
    assert encoders({"layer.1.*": b, "lora_A": a}, rest)["layer.1.lora_A"] == b
    assert encoders({"*": a}, rest).keys() == {slot.name for slot in SPACE.slots}
    assert encoders({"layer.0.lora_[AB]": a}, rest)["layer.0.lora_B"] == a


@pytest.mark.parametrize(
    "rules", [{"lora_C": Identity()}, {"*": Identity(), "lora_A": Identity()}, {"LORA_A": Ternary()}]
)
def test_a_pattern_that_fits_nothing_is_refused(rules):
    pattern = list(rules)[-1].replace("*", r"\*")
    with pytest.raises(ValueError, match=f"the pattern '{pattern}' fits no slot"):
        per_slot(rules, default=Ternary()).layout(SPACE)


def test_per_slot_encodes_each_group_in_its_own_space():
    rules = {"lora_A": Ternary(0.5, threshold="global"), "layer.?.lora_B": Uniform(4)}
    x = normal(SPACE)
    y = there_and_back(per_slot(rules, default=Identity()), x)
    for pattern, codec in [*rules.items(), ("head", Identity())]:
        role = {"layer.?.lora_B": "lora_B"}.get(pattern, pattern)
        group = SPACE.subspace(slot.name for slot in SPACE.slots if slot.role == role)
        alone = there_and_back(codec, group.flatten({s.name: SPACE.view(x, s.name) for s in group.slots}), group)
        for slot in group.slots:
            assert torch.equal(SPACE.view(y, slot.name), group.view(alone, slot.name))


def test_groups_draw_from_streams_of_their_own():
    """Equal values in two groups are not rounded alike; and a group's own stream is the same on both ends."""
    space = Space((Slot("a", (4, 50), "lora_A"), Slot("b", (4, 50), "lora_B")))
    noisy = Uniform(2, stochastic=True)
    y = there_and_back(per_slot({"lora_A": noisy}, default=noisy), torch.linspace(-1, 1, 200).repeat(2), space)
    assert not torch.equal(space.view(y, "a"), space.view(y, "b"))


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@over("normal", "equal", "denormal", "huge", "zero")
def test_feedback_loses_nothing(codec, name):
    if beyond(codec, name):
        return
    feedback, residual = ErrorFeedback(codec), torch.zeros(SPACE.numel)
    given, received = torch.zeros(SPACE.numel, dtype=torch.float64), torch.zeros(SPACE.numel, dtype=torch.float64)
    largest = torch.zeros(())
    for number in range(1, 5):
        ctx = Context(5, number, 2)
        delta = DELTAS[name](SPACE).roll(number)
        parts, residual = feedback.encode(delta, residual, SPACE, ctx)
        given += delta
        received += codec.decode(parts, SPACE, ctx)
        largest = torch.maximum(largest, torch.maximum(residual.abs().max(), received.abs().max().float()))
    assert residual.dtype == torch.float32
    assert torch.allclose(received + residual, given, rtol=0, atol=4 * 2.0**-23 * float(largest) + 1e-44)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("clip", [None, 1e-3, 1e6])
def test_a_residual_is_memory_of_its_own(codec, clip):
    delta, carried = normal(SPACE, 1), normal(SPACE, 2)
    feedback = ErrorFeedback(codec, clip=clip)
    parts, residual = feedback.encode(delta, carried, SPACE, CONTEXT)
    sent, decoded = all_bits(parts), codec.decode(parts, SPACE, CONTEXT)
    kept, again = residual.clone(), decoded.clone()
    residual.add_(1)
    assert all_bits(parts) == sent and torch.equal(decoded, again)
    assert torch.equal(codec.decode(parts, SPACE, CONTEXT), again)
    assert torch.equal(delta, normal(SPACE, 1)) and torch.equal(carried, normal(SPACE, 2))
    wanted = Clip(clip).forward(delta, SPACE, CONTEXT) + carried if clip else delta + carried
    assert torch.equal(kept, wanted - again)
    assert all_bits(feedback.encode(delta, carried, SPACE, CONTEXT)[0]) == sent


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_feedback_is_its_two_equations(decay):
    delta, residual = normal(SPACE, 1), normal(SPACE, 2)
    before = delta.clone(), residual.clone()
    for codec in (Ternary(0.1), Uniform(2), chain(Clip(1.0), Ternary())):
        feedback = ErrorFeedback(codec, decay)
        parts, kept = feedback.encode(delta, feedback.carry(residual), SPACE, CONTEXT)
        wanted = delta + decay * residual
        assert all_bits(parts) == all_bits(codec.encode(wanted, SPACE, CONTEXT))
        assert torch.equal(kept, wanted - codec.decode(parts, SPACE, CONTEXT))
    assert torch.equal(delta, before[0]) and torch.equal(residual, before[1])


def test_what_is_sent_whole_leaves_no_residual():
    for name in DELTAS:
        parts, residual = ErrorFeedback(Identity()).encode(
            DELTAS[name](SPACE), torch.zeros(SPACE.numel), SPACE, CONTEXT
        )
        assert not residual.any() and parts.keys() == {"values"}


def test_feedback_brings_every_coordinate_through_in_the_end():
    x, residual, total = normal(LARGE), torch.zeros(LARGE.numel), torch.zeros(LARGE.numel)
    codec = Ternary(0.05)
    for _ in range(200):
        parts, residual = ErrorFeedback(codec).encode(x, residual, LARGE, CONTEXT)
        total += codec.decode(parts, LARGE, CONTEXT)
    assert (total / 200 - x).norm() < 0.2 * x.norm() < (there_and_back(codec, x, LARGE) - x).norm()


def test_feedback_is_no_codec():
    assert not isinstance(ErrorFeedback(Ternary()), Codec)
