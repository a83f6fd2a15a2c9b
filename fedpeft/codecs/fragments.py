"""A part of the adapter each round, in turn."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Codec, Context, Field, Layout, Parts, empty, fit
from fedpeft.space import Slot, Space

_INNER = 1022  # part of the context in which a fragment is encoded; `per_slot` numbers its own from 1


@dataclass(frozen=True)
class Fragments(Codec):
    """Send one of `count` groups of slots each round, in turn: round t carries fragment (t - 1) mod count.

    Streaming DiLoCo (Douillard, Donchev, Rush, Kale, Charles, Garrett, Teston, Lacey, McIlroy, Shen, Ramé, Szlam,
    Ranzato and Barham, 2025, arXiv 2501.18512). Modules go, in order, to the fragment that is smallest so far, which
    strides where they are of one size, and the slots of a module (its A and B) stay together. Slots that a round does
    not carry keep their value and the state of the server's optimizer.

    Under `ErrorFeedback` what was not sent is kept until its turn. With `training.start: own` a site trains on from its
    own parameters, unsent work included, as the paper's replicas do; with `global` each round begins where all do.
    A `per_slot` whose patterns some fragment lacks goes outside: `per_slot({"head": ...}, default=Fragments(...))`.

    >>> from fedpeft.codecs import Identity
    >>> space = Space(tuple(Slot(f"{i}.lora_{ab}", (1,), f"lora_{ab}") for i in range(3) for ab in "AB"))
    >>> [slot.name for slot in Fragments(Identity(), count=2).carried(space, Context(round=1)).slots]
    ['0.lora_A', '0.lora_B', '2.lora_A', '2.lora_B']

    Args:
        codec: what encodes the fragment, in the space of its slots alone.
        count: how many fragments; where there are fewer modules, as many as those.
    """

    codec: Codec
    count: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.codec, Codec):
            raise ValueError(f"Fragments: codec must be a codec, got {self.codec!r}")
        if type(self.count) is not int or self.count < 1:
            raise ValueError(f"Fragments: count must be at least 1, got {self.count!r}")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the codec of a fragment is."""
        return self.codec.linear

    def carried(self, space: Space, ctx: Context) -> Space:
        """The fragment whose turn it is."""
        return self.codec.carried(self._fragment(space, ctx), _inside(ctx))

    def layout(self, space: Space) -> Layout:
        """The parts of any fragment."""
        fields: dict[str, Field] = {}
        for fragment in _fragments(space, self.count):
            for name, field in self.codec.layout(fragment).items():
                fields[name] = _either(fields.get(name), field)
        return {name: replace(field, ragged=True) for name, field in fields.items()} if self.count > 1 else fields

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Take the fragment's slots out and encode them."""
        if len(wrong := torch.isfinite(delta).logical_not().nonzero()):
            raise ValueError(f"coordinate {int(wrong[0])} of the delta is not finite")
        fragment = self._fragment(space, ctx)
        gathered = torch.cat([space.view(delta, slot.name).reshape(-1) for slot in fragment.slots])
        parts = self.codec.encode(gathered, fragment, _inside(ctx))
        return {name: parts[name] if name in parts else empty(field) for name, field in self.layout(space).items()}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The fragment in its place, and zeros.

        Raises:
            PayloadError: the parts are not those of this round's fragment.
        """
        fragment = self._fragment(space, ctx)
        vector = self.codec.decode(fit(parts, self.codec.layout(fragment)), fragment, _inside(ctx))
        delta = torch.zeros(space.numel)
        for slot in fragment.slots:
            space.view(delta, slot.name).copy_(fragment.view(vector, slot.name))
        return delta

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, str]:
        """What the fragment's codec has chosen."""
        fragment = self._fragment(space, ctx)
        return self.codec.chosen(fit(parts, self.codec.layout(fragment)), fragment, _inside(ctx))

    def _fragment(self, space: Space, ctx: Context) -> Space:
        fragments = _fragments(space, self.count)
        return fragments[max(ctx.round - 1, 0) % len(fragments)]


@lru_cache(maxsize=64)
def _fragments(space: Space, count: int) -> tuple[Space, ...]:
    modules: dict[str, list[Slot]] = {}
    for slot in space.slots:
        modules.setdefault(_module(slot), []).append(slot)
    count = min(count, len(modules))
    names: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for slots in modules.values():
        # An empty fragment first, whatever the sizes: a module may have no parameter.
        smallest = min(range(count), key=lambda i: (bool(names[i]), sizes[i]))
        names[smallest] += [slot.name for slot in slots]
        sizes[smallest] += sum(slot.numel for slot in slots)
    return tuple(space.subspace(chosen) for chosen in names)


def _module(slot: Slot) -> str:
    """Name of the module that a slot belongs to, in PEFT's naming of its parameters."""
    before, role, _ = slot.name.partition(f".{slot.role}")
    return before if role else slot.name.rpartition(".")[0] or slot.name


def _either(a: Field | None, b: Field) -> Field:
    if a is None:
        return b
    if replace(a, numel=0, ragged=False) != replace(b, numel=0, ragged=False):
        raise ValueError(f"Fragments: a codec whose parts differ in kind between slots cannot be cut: {a}, {b}")
    return replace(a, numel=max(a.numel, b.numel))


def _inside(ctx: Context) -> Context:
    return replace(ctx, part=1024 * ctx.part + _INNER)
