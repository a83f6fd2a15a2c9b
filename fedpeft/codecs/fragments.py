"""A part of the adapter each round, in turn."""

from dataclasses import dataclass
from functools import lru_cache

from fedpeft.codecs.partial import Partial
from fedpeft.space import Slot, Space


@dataclass(frozen=True)
class Fragments(Partial):
    """Send one of `count` groups of slots each round, in turn: round t carries fragment (t - 1) mod count.

    Streaming DiLoCo (Douillard, Donchev, Rush, Kale, Charles, Garrett, Teston, Lacey, McIlroy, Shen, Ramé, Szlam,
    Ranzato and Barham, 2025, arXiv 2501.18512). Modules go, in order, to the fragment that is smallest so far, which
    strides where they are of one size, and the slots of a module (its A and B) stay together. Slots that a round does
    not carry keep their value and the state of the server's optimizer.

    Under `ErrorFeedback` what was not sent is kept until its turn. With `training.start: own` a site trains on from its
    own parameters, unsent work included, as the paper's replicas do; with `global` each round begins where all do.
    A `per_slot` whose patterns some fragment lacks goes outside: `per_slot({"head": ...}, default=Fragments(...))`.

    >>> from fedpeft.codecs import Context, Identity
    >>> space = Space(tuple(Slot(f"{i}.lora_{ab}", (1,), f"lora_{ab}") for i in range(3) for ab in "AB"))
    >>> [slot.name for slot in Fragments(Identity(), count=2).carried(space, Context(round=1)).slots]
    ['0.lora_A', '0.lora_B', '2.lora_A', '2.lora_B']

    Args:
        codec: what encodes the fragment, in the space of its slots alone.
        count: how many fragments; where there are fewer modules, as many as those.
    """

    count: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.count) is not int or self.count < 1:
            raise ValueError(f"Fragments: count must be at least 1, got {self.count!r}")
        if "before" in self.codec.reads and self.count > 1:
            raise ValueError(f"Fragments: {self.codec!r} reads the last round's step, which carried another fragment")

    def pieces(self, space: Space) -> tuple[Space, ...]:
        """Modules together, in fragments of about one size."""
        return _fragments(space, self.count)


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
