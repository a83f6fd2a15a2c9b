"""The space of an adapter: which tensors it has, in which order, on which base model."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.errors import SpaceError


@dataclass(frozen=True, order=True)
class Slot:
    """One tensor of an adapter.

    Args:
        name: its key in the PEFT state dict.
        shape: its dimensions; () for a scalar.
        role: what it is for a codec or a strategy: "lora_A", "lora_B", "head", ... (the PEFT parameter's kind).
    """

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return prod(self.shape)

    def fits(self, pattern: str) -> bool:
        """Whether it is meant by a role, or by a pattern of names with `*`."""
        return pattern == self.role or fnmatchcase(self.name, pattern)

    def __str__(self) -> str:
        return f"{self.name!r} {self.shape} ({self.role})"


@dataclass(frozen=True)
class Space:
    """An ordered list of slots, the PEFT config that made them and the base model they belong to.

    A client's work in a space is a *delta*: one flat float32 vector of `numel` numbers, slot after slot.

    >>> space = Space((Slot("b", (2,), "head"), Slot("a", (2, 3), "lora_A")))
    >>> space.numel, [slot.name for slot in space.slots]
    (8, ['a', 'b'])

    Args:
        slots: sorted by name on construction.
        config: the PEFT config as canonical JSON ("" where there is none, as in a test).
        base: hexadecimal SHA-256 of the base model's weights ("" where there is none).

    Raises:
        ValueError: two slots have one name, or there is no slot.
    """

    slots: tuple[Slot, ...]
    config: str = ""
    base: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(sorted(self.slots)))
        names = [slot.name for slot in self.slots]
        if not names:
            raise ValueError("a space needs at least one slot; the adapter has no trainable parameter")
        if len(set(names)) != len(names):
            twice = next(a for a, b in pairwise(names) if a == b)
            raise ValueError(f"slot {twice!r} is given twice")

    @cached_property
    def numel(self) -> int:
        """Number of trainable parameters d."""
        return sum(slot.numel for slot in self.slots)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each slot begins in the flat vector, and the end: m + 1 numbers for m slots."""
        ends = [0]
        for slot in self.slots:
            ends.append(ends[-1] + slot.numel)
        return tuple(ends)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 over slots, PEFT config and base model: 32 bytes that head every payload."""
        return hashlib.sha256(self.to_json().encode()).digest()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {slot.name: i for i, slot in enumerate(self.slots)}

    def flatten(self, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Float[Tensor, " d"]:
        """One float32 vector from the tensors of all slots, wherever they lie.

        Args:
            tensors: by slot.
            device: of the vector; None: the CPU.

        Raises:
            SpaceError: a tensor is missing, unknown, or of another shape.
        """
        for name in tensors:
            if name not in self._index:
                raise SpaceError(f"{name!r} is no slot of this space; it has {len(self.slots)} other slots")
        vector = torch.empty(self.numel, dtype=torch.float32, device="cpu" if device is None else device)
        for slot, begin, end in zip(self.slots, self.bounds, self.bounds[1:], strict=False):
            if slot.name not in tensors:
                raise SpaceError(f"{slot.name!r}: expected a tensor of shape {slot.shape}, got none")
            tensor = tensors[slot.name]
            if tuple(tensor.shape) != slot.shape:
                raise SpaceError(
                    f"{slot.name!r}: expected shape {slot.shape}, got {tuple(tensor.shape)}; "
                    "the adapter was made with another PEFT config"
                )
            vector[begin:end] = tensor.detach().reshape(-1)
        return vector

    def view(self, vector: Float[Tensor, " d"], name: str) -> Tensor:
        """The slot's part of a flat vector in the slot's shape, without a copy."""
        i = self._index[name]
        return vector[self.bounds[i] : self.bounds[i + 1]].view(self.slots[i].shape)

    def tensors(self, vector: Float[Tensor, " d"]) -> dict[str, Tensor]:
        """Views of all slots by name, without a copy."""
        if vector.shape != (self.numel,):
            raise ValueError(f"expected a vector of shape ({self.numel},), got {tuple(vector.shape)}")
        return {slot.name: self.view(vector, slot.name) for slot in self.slots}

    def subspace(self, names: Iterable[str]) -> "Space":
        """The space of only these slots."""
        return Space(tuple(self.slots[self._index[name]] for name in names), self.config, self.base)

    def groups(self, patterns: Sequence[str]) -> "tuple[Space | None, ...]":
        """The spaces of the slots that fit each pattern and no earlier one, and of those that fit none.

        >>> space = Space(tuple(Slot(name, (1,), role) for name, role in (("a", "head"), ("b", "lora_A"))))
        >>> [group and group.slots[0].name for group in space.groups(["head", "*.weight"])]
        ['a', None, 'b']
        """
        names: list[list[str]] = [[] for _ in (*patterns, "")]
        for slot in self.slots:
            names[next((i for i, p in enumerate(patterns) if slot.fits(p)), len(patterns))].append(slot.name)
        return tuple(self.subspace(found) if found else None for found in names)

    def take(self, vector: Float[Tensor, " d"], group: "Space") -> Float[Tensor, " g"]:
        """The part of a flat vector that a group of the slots has, in the group's own order."""
        return torch.cat([self.view(vector, slot.name).reshape(-1) for slot in group.slots])

    def put(self, part: Float[Tensor, " g"], group: "Space", vector: Float[Tensor, " d"]) -> None:
        """Write what a group of the slots has to its place in a flat vector."""
        for slot in group.slots:
            self.view(vector, slot.name).copy_(group.view(part, slot.name))

    def check(self, other: "Space") -> None:
        """Pass when `other` is this very space.

        Raises:
            SpaceError: says which slot, PEFT setting or base model differs.
        """
        if other.fingerprint != self.fingerprint:
            raise SpaceError(self._difference(other))

    def _difference(self, other: "Space") -> str:
        ours, theirs = ({s.name: s for s in space.slots} for space in (self, other))
        for name in sorted(ours.keys() | theirs.keys()):
            mine, yours = ours.get(name), theirs.get(name)
            if yours is None:
                return f"slot {mine}: expected, but the other adapter has none; it was made with another PEFT config"
            if mine is None:
                return f"slot {yours}: not expected here; the other adapter was made with another PEFT config"
            if mine != yours:
                return (
                    f"slot {name!r}: expected shape {mine.shape} as {mine.role}, got {yours.shape} as {yours.role}; "
                    "the other adapter was made with another PEFT config"
                )
        if self.base != other.base:
            return (
                f"all {len(self.slots)} slots agree, but the base models differ: expected SHA-256 {self.base[:16]}..., "
                f"got {other.base[:16]}...; load the same revision of the base model"
            )
        mine_config, your_config = (json.loads(space.config or "{}") for space in (self, other))
        for key in sorted(mine_config.keys() | your_config.keys()):
            if mine_config.get(key) != your_config.get(key):
                return (
                    f"all {len(self.slots)} slots agree, but the PEFT setting {key!r} differs: "
                    f"expected {mine_config.get(key)!r}, got {your_config.get(key)!r}"
                )
        return "the spaces differ"

    def to_json(self) -> str:
        """Canonical JSON: what the fingerprint is taken of, and what a site is sent to compare with its own."""
        slots = [[slot.name, list(slot.shape), slot.role] for slot in self.slots]
        return json.dumps({"base": self.base, "config": self.config, "slots": slots}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Space":
        """The space that `to_json` wrote.

        Raises:
            SpaceError: the text is not such a description.
        """
        try:
            raw = json.loads(text)
            slots = tuple(Slot(str(name), tuple(shape), str(role)) for name, shape, role in raw["slots"])
            if any(type(n) is not int or n < 0 for slot in slots for n in slot.shape):
                raise ValueError("a dimension is no whole number of at least 0")
            if raw["config"] and not isinstance(json.loads(raw["config"]), dict):
                raise ValueError("the PEFT config is no JSON object")
            return Space(slots, str(raw["config"]), str(raw["base"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SpaceError(f"not a description of a space: {error}") from None
