"""Slots by what they are for, in turn: some of LoRA's factors each round, or never."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedpeft.codecs.partial import Partial
from fedpeft.space import Space


@dataclass(frozen=True)
class Turns(Partial):
    """Send one group of roles each round, in turn: round t carries group (t - 1) mod m.

    With `training.slots: carried` a site trains what it sends and nothing else:

    * `Turns(codec, ("lora_B head",))` is FFA-LoRA (Sun, Li, Li and Ding, 2024, arXiv 2403.12313): A stays as it was
      drawn, and the mean of B is the mean of the products, exactly;
    * `Turns(codec, ("lora_B head", "lora_A head"))` is RoLoRA (Chen, Guo, Ju, Dalal, Zhu and Khisti, 2025, arXiv
      2502.01755): B and A by turns, each round's mean exact too.

    A slot that no group names is never sent, so it stays as it began.

    >>> from fedpeft.codecs import Context, Identity
    >>> from fedpeft.space import Slot
    >>> space = Space(tuple(Slot(f"0.{role}", (1,), role) for role in ("head", "lora_A", "lora_B")))
    >>> turns = Turns(Identity(), ("lora_B head", "lora_A head"))
    >>> [slot.role for slot in turns.carried(space, Context(round=2)).slots]
    ['head', 'lora_A']

    Args:
        codec: what encodes the group, in the space of its slots alone.
        groups: of each, roles or patterns of slot names (with `*`), with spaces between.
    """

    groups: Sequence[str] = ("lora_B head",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups or not all(isinstance(group, str) and group.split() for group in self.groups):
            raise ValueError(f"Turns: expected groups of roles such as ('lora_B head',), got {self.groups!r}")
        if "before" in self.codec.reads and len(self.groups) > 1:
            raise ValueError(f"Turns: {self.codec!r} reads the last round's step, which carried another group")

    def pieces(self, space: Space) -> tuple[Space, ...]:
        """The slots that each group names.

        Raises:
            ValueError: it names none.
        """
        return _named(space, tuple(self.groups))


@lru_cache(maxsize=64)
def _named(space: Space, groups: tuple[str, ...]) -> tuple[Space, ...]:
    pieces = []
    for group in groups:
        found = [slot.name for slot in space.slots if any(slot.fits(pattern) for pattern in group.split())]
        if not found:
            roles = sorted({slot.role for slot in space.slots})
            raise ValueError(f"Turns: {group!r} names no slot of this adapter, whose roles are {roles}")
        pieces.append(space.subspace(found))
    return tuple(pieces)
