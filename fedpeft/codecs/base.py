"""What a codec is: a pure function from a delta to a few small named arrays, and back."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.errors import Defect, PayloadError
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.ternary import TernaryDelta


@dataclass(frozen=True, eq=False)
class Plane:
    """A part of zeros and ones: bit i is `bits[i // 8] >> i % 8 & 1`, and the bits past `numel` are zero."""

    bits: NDArray[np.uint8]
    numel: int


@dataclass(frozen=True, eq=False)
class Symbols:
    """A part over an alphabet of 2 to 256 `levels`: one symbol, below `levels`, in each byte of `values`."""

    values: NDArray[np.uint8]
    levels: int


@dataclass(frozen=True, eq=False)
class Numbers:
    """A part of plain numbers, sent as they are: float32, float16, or an integer type of 8 to 64 bits."""

    values: NDArray[Any]

    @property
    def lent(self) -> NDArray[Any]:
        """The numbers for reading only; what came over a wire lies there, at any address, and is not copied."""
        return self.values


Part: TypeAlias = Plane | Symbols | Numbers
Parts: TypeAlias = Mapping[str, Part]

P = TypeVar("P", Plane, Symbols, Numbers)


def take(parts: Parts, name: str, kind: type[P]) -> P:
    """A part, known to be of a kind.

    Raises:
        TypeError: it is of another; parts from a wire were held against the codec's layout before.
    """
    part = parts[name]
    if not isinstance(part, kind):
        raise TypeError(f"part {name!r}: expected {kind.__name__}, got {type(part).__name__}")
    return part


LARGEST = float(np.finfo(np.float32).max)  # of a coordinate
ROUNDING = 1.01  # that float32 may make a norm longer by, at most


def finite(delta: Float[Tensor, " d"]) -> NDArray[np.float32]:
    """A delta as a kernel takes it.

    Raises:
        ValueError: a coordinate is infinite or NaN.
    """
    return with_largest(delta)[0]


def with_largest(delta: Float[Tensor, " d"]) -> tuple[NDArray[np.float32], float]:
    """A delta as a kernel takes it, and its largest magnitude, from one pass over it.

    Raises:
        ValueError: a coordinate is infinite or NaN.
    """
    x: NDArray[np.float32] = np.ascontiguousarray(delta.detach().to("cpu", torch.float32).numpy())
    largest = float(kernels.block_largest(x, np.array([0, x.size]))[0])
    if not math.isfinite(largest):
        raise ValueError(f"coordinate {int(np.flatnonzero(~np.isfinite(x))[0])} of the delta is not finite")
    return x, largest


class Choice(NamedTuple):
    """What a slot was given.

    Args:
        kind: of code, in a word.
        density: share of the slot's coordinates that are kept.
    """

    kind: str
    density: float


@dataclass(frozen=True)
class Field:
    """What a receiver expects of one part before it has seen it: no size that a sender declares is trusted.

    Args:
        kind: which part class.
        numel: exact number of bits, symbols or numbers; an upper bound where `ragged`.
        ragged: the number depends on the data (how many signs a mask has).
        levels: alphabet of symbols.
        dtype: numpy name of the numbers' type.
        permutation: the numbers are 0 .. numel - 1 in some order (a ranking).
    """

    kind: Literal["plane", "symbols", "numbers"]
    numel: int
    ragged: bool = False
    levels: int = 2
    dtype: str = "float32"
    permutation: bool = False


Layout: TypeAlias = Mapping[str, Field]


def empty(field: Field) -> Part:
    """A part of this kind with nothing in it."""
    match field.kind:
        case "plane":
            return Plane(np.empty(0, np.uint8), 0)
        case "symbols":
            return Symbols(np.empty(0, np.uint8), field.levels)
        case "numbers":
            return Numbers(np.empty(0, np.dtype(field.dtype)))


def either(layouts: Sequence[Layout]) -> Layout:
    """What a receiver expects where a codec makes the parts of one of several layouts.

    Raises:
        ValueError: a part is of one kind here and of another there.
    """
    fields: dict[str, Field] = {}
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        found = [layout[name] for layout in layouts if name in layout]
        if len({replace(field, numel=0, ragged=False) for field in found}) > 1:
            raise ValueError(f"part {name!r} would differ in kind from round to round: {found}")
        ragged = found[0].ragged or len(layouts) > 1
        fields[name] = replace(found[0], numel=max(field.numel for field in found), ragged=ragged)
    return fields


def fit(parts: Parts, layout: Layout) -> Parts:
    """The parts that a codec inside another expects, from parts that the outer one's layout only bounds.

    Raises:
        PayloadError: one has another size, or one that the layout does not name is not empty.
    """
    for name, part in parts.items():
        size = part.numel if isinstance(part, Plane) else int(part.values.size)
        field = layout.get(name)
        most = field.numel if field else 0
        if size > most or (field and size < most and not field.ragged):
            raise PayloadError(Defect.COUNT, f"part {name!r}: expected {most}, got {size}")
        if field and field.permutation and np.any(np.sort(take(parts, name, Numbers).values) != np.arange(size)):
            raise PayloadError(Defect.COUNT, f"part {name!r}: expected an order of {size} numbers")
    return {name: parts[name] for name in layout}


MOST_GROUPS = 1020  # that a codec may number for `Context.nested`, from 1
PROJECTIONS, PIECE, KEPT = 1021, 1022, 1023  # numbers of what a codec puts in the place of a group
_NUMBERS, _PARTS = 1024, 1 << 24  # of one nesting, and of a stream


@dataclass(frozen=True)
class Context:
    """Who encodes, and when: what a codec may draw randomness from, and what both ends hold already.

    Args:
        seed: the run's seed; deep inside other codecs, one made of it.
        round: the round, from 1.
        client: number of the client whose delta it is.
        part: which place among codecs inside codecs; 0 is the outermost.
        start: the public adapter that the delta begins at, shape (d,); None: not known, for codecs that do not read it.
        before: the public adapter of the round before, shape (d,); None in the first round too.
    """

    seed: int = 0
    round: int = 0
    client: int = 0
    part: int = 0
    start: Float[Tensor, " d"] | None = field(default=None, compare=False, repr=False)
    before: Float[Tensor, " d"] | None = field(default=None, compare=False, repr=False)

    @property
    def shared(self) -> Stream:
        """A stream that is the same for all clients of the round."""
        return Stream(self.seed, Purpose.CODEC_SHARED, self.round, part=self.part)

    @property
    def private(self) -> Stream:
        """A stream of this client alone."""
        return Stream(self.seed, Purpose.CODEC_PRIVATE, self.round, self.client, self.part)

    def inside(self, space: Space, group: Space, number: int) -> "Context":
        """The context of a group of a space's slots, with streams of its own, also where groups are nested.

        Args:
            space: what this context is of.
            group: some of its slots.
            number: of the group, in [1, 1024).
        """
        start, before = (x if x is None else space.take(x, group) for x in (self.start, self.before))
        return self.nested(number, start=start, before=before)

    def nested(
        self, number: int, start: Float[Tensor, " g"] | None = None, before: Float[Tensor, " g"] | None = None
    ) -> "Context":
        """The context of a codec inside another, with streams that no other number's share, however deep it lies.

        Args:
            number: of the codec, in [1, 1024).
            start: what it sees of `start`; None where it may not read it.
            before: what it sees of `before`.
        """
        seed, part = self.seed, _NUMBERS * self.part + number
        if part >= _PARTS:  # More than a stream can tell apart: the seed tells where this is.
            digest = hashlib.sha256(f"{seed}/{self.part}".encode()).digest()
            seed, part = int.from_bytes(digest[:8], "little"), number
        return replace(self, seed=seed, part=part, start=start, before=before)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A decode in two steps, of which the second is linear: decode(parts) is spread(values(parts)).

    Values may be summed before they are spread, so the mean of many updates is spread once.

    Args:
        key: where those of two sketches are equal, both spread alike, whoever encoded.
        values: the few numbers that parts stand for, shape (m,); it refuses what `decode` refuses.
        spread: the delta that such numbers stand for; finite for those that are not refused, and for their means.
        longest: a bound on the L2 norm of that delta, rounding included, without spreading.
    """

    key: Hashable
    values: Callable[[Parts], NDArray[np.float32]]
    spread: Callable[[NDArray[np.float32]], Tensor]
    longest: Callable[[NDArray[np.float32]], float]


class Codec(ABC):
    """A change of representation of a delta; pure, stateless, and printed as the expression that makes it.

    Subclasses are frozen dataclasses. `linear`: decode(a + b) == decode(a) + decode(b), so encoded parts may be
    summed. `unbiased`: the mean of decode(encode(x)) over the context's streams is x. `reads`: which of the context's
    vectors it needs, of "start" and "before"; who encodes and who decodes must hold the same.
    """

    linear: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def layout(self, space: Space) -> Layout:
        """The parts that `encode` makes in this space, by name."""

    @abstractmethod
    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """The parts that stand for a delta; the same delta, space and context give the same bits."""

    @abstractmethod
    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """A delta from parts that follow `layout`, in memory of its own: whoever asked may write to it.

        Raises:
            PayloadError: the parts contradict each other.
        """

    def planes(self, parts: Parts, space: Space, ctx: Context) -> TernaryDelta | None:
        """What `decode` gives, as bit planes, where it is ternary; a strategy may merge those as they are.

        Raises:
            PayloadError: as `decode`.
        """
        return None

    def sketch(self, space: Space, ctx: Context) -> Sketch | None:
        """How `decode` goes in two steps, where the second costs more and is linear; whether `encode` is or not."""
        return None

    def carried(self, space: Space, ctx: Context) -> Space:
        """The slots that updates of this round can change; all, unless overridden.

        The server's optimizer leaves the others as they are, and their momentum too.
        """
        return space

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, Choice]:
        """What a codec that chooses has chosen for each slot, by name; empty for one that does not."""
        return {}


class Transform(ABC):
    """A step before a codec, from vectors to vectors of the same size; `chain` puts it there."""

    @abstractmethod
    def forward(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """What is encoded instead of the delta."""

    def inverse(self, vector: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The delta that a decoded vector stands for, maybe written over it; itself unless overridden."""
        return vector
