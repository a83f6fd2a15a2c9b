"""Codecs made of codecs: `chain` and `per_slot`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import MOST_GROUPS, Choice, Codec, Context, Layout, Parts, Sketch, Transform
from fedpeft.space import Space
from fedpeft.ternary import TernaryDelta


@dataclass(frozen=True, repr=False)
class Chain(Codec):
    """Transforms in order, then a codec; made by `chain`."""

    transforms: tuple[Transform, ...]
    codec: Codec

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, (*self.transforms, self.codec)))})"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What the last codec reads; transforms read nothing."""
        return self.codec.reads

    def layout(self, space: Space) -> Layout:
        """The last codec's."""
        return self.codec.layout(space)

    def carried(self, space: Space, ctx: Context) -> Space:
        """The last codec's."""
        return self.codec.carried(space, ctx)

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, Choice]:
        """What the last codec has chosen."""
        return self.codec.chosen(parts, space, ctx)

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Transform, then encode."""
        for transform in self.transforms:
            delta = transform.forward(delta, space, ctx)
        return self.codec.encode(delta, space, ctx)

    def planes(self, parts: Parts, space: Space, ctx: Context) -> TernaryDelta | None:
        """The last codec's, where no transform is to be inverted."""
        return None if self._inverts else self.codec.planes(parts, space, ctx)

    def sketch(self, space: Space, ctx: Context) -> Sketch | None:
        """The last codec's, where no transform is to be inverted."""
        return None if self._inverts else self.codec.sketch(space, ctx)

    @property
    def _inverts(self) -> bool:
        return any(type(transform).inverse is not Transform.inverse for transform in self.transforms)

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Decode, then invert the transforms, the last first."""
        vector = self.codec.decode(parts, space, ctx)
        for transform in reversed(self.transforms):
            vector = transform.inverse(vector, space, ctx)
        return vector


def chain(*steps: Transform | Codec) -> Codec:
    """A codec that applies transforms before another codec: `chain(Clip(norm=1.0), Ternary(density=0.2))`.

    Raises:
        ValueError: the last step is no codec, or an earlier one is.
    """
    *before, last = steps or (None,)
    if not isinstance(last, Codec):
        raise ValueError(f"the last step of a chain must be a codec, got {last!r}")
    transforms = tuple(step for step in before if isinstance(step, Transform))
    if len(transforms) != len(before):
        wrong = next(step for step in before if not isinstance(step, Transform))
        raise ValueError(f"every step of a chain but the last must be a transform, got {wrong!r}")
    if last.reads and (inverted := [step for step in transforms if type(step).inverse is not Transform.inverse]):
        raise ValueError(f"{last!r} reads the adapter, which {inverted[0]!r} before it does not transform")
    return Chain(transforms, last) if transforms else last


@dataclass(frozen=True, repr=False)
class PerSlot(Codec):
    """One codec for the slots of each pattern; made by `per_slot`."""

    rules: tuple[tuple[str, Codec], ...]
    default: Codec

    def __repr__(self) -> str:
        rules = ", ".join(f"{pattern!r}: {codec!r}" for pattern, codec in self.rules)
        return f"per_slot({{{rules}}}, default={self.default!r})"

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What the groups' codecs read together."""
        return frozenset().union(self.default.reads, *(codec.reads for _, codec in self.rules))

    def layout(self, space: Space) -> Layout:
        """The parts of all groups, prefixed with the group's number."""
        return {
            f"{i}.{name}": field
            for i, codec, group in self._groups(space)
            for name, field in codec.layout(group).items()
        }

    def carried(self, space: Space, ctx: Context) -> Space:
        """What the groups' codecs carry together."""
        groups = (codec.carried(group, ctx.inside(space, group, i + 1)) for i, codec, group in self._groups(space))
        return space.subspace(slot.name for group in groups for slot in group.slots)

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Encode each group of slots in its own space."""
        parts = {}
        for i, codec, group in self._groups(space):
            encoded = codec.encode(space.take(delta, group), group, ctx.inside(space, group, i + 1))
            parts.update({f"{i}.{name}": part for name, part in encoded.items()})
        return parts

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Decode each group and put its slots where they belong."""
        delta = torch.empty(space.numel, dtype=torch.float32, device="cpu")
        for i, codec, group in self._groups(space):
            own = {name: parts[f"{i}.{name}"] for name in codec.layout(group)}
            vector = codec.decode(own, group, ctx.inside(space, group, i + 1))
            space.put(vector, group, delta)
        return delta

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, Choice]:
        """What the groups' codecs have chosen."""
        found: dict[str, Choice] = {}
        for i, codec, group in self._groups(space):
            own = {name: parts[f"{i}.{name}"] for name in codec.layout(group)}
            found.update(codec.chosen(own, group, ctx.inside(space, group, i + 1)))
        return found

    def _groups(self, space: Space) -> tuple[tuple[int, Codec, Space], ...]:
        return _grouped(self, space)


@lru_cache(maxsize=64)
def _grouped(codec: PerSlot, space: Space) -> tuple[tuple[int, Codec, Space], ...]:
    """Number, codec and space of every group that has a slot; a slot belongs to the first pattern that fits."""
    groups = space.groups([pattern for pattern, _ in codec.rules])
    for (pattern, _), group in zip(codec.rules, groups, strict=False):
        if group is None:
            raise ValueError(
                f"per_slot: the pattern {pattern!r} fits no slot that an earlier one left, of "
                f"{[slot.name for slot in space.slots][:3]} and {max(0, len(space.slots) - 3)} more"
            )
    choices = (*(inner for _, inner in codec.rules), codec.default)
    return tuple((i, choice, group) for i, (choice, group) in enumerate(zip(choices, groups, strict=True)) if group)


def per_slot(rules: Mapping[str, Codec], *, default: Codec) -> Codec:
    """A codec that treats slots differently: `per_slot({"lora_A": Uniform(bits=4)}, default=Ternary(density=0.2))`.

    Args:
        rules: codec by role, or by a pattern of the slot's name with `*`; the first that fits counts.
        default: codec of the slots that no pattern fits.
    """
    if not isinstance(rules, Mapping) or not all(isinstance(pattern, str) for pattern in rules):
        raise ValueError(f"per_slot: expected a mapping of patterns to codecs, got {rules!r}")
    for pattern, codec in [*rules.items(), ("default", default)]:
        if not isinstance(codec, Codec):
            raise ValueError(f"per_slot: expected a codec for {pattern!r}, got {codec!r}")
    if len(rules) >= MOST_GROUPS:
        raise ValueError(
            f"per_slot: expected at most {MOST_GROUPS - 1} patterns, got {len(rules)}; "
            "one pattern with `*` may stand for many slots"
        )
    return PerSlot(tuple(rules.items()), default)
