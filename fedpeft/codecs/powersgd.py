"""One side of a power iteration each round: a matrix seen through directions that both ends know."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import (
    LARGEST,
    PROJECTIONS,
    ROUNDING,
    Codec,
    Context,
    Layout,
    Parts,
    Sketch,
    either,
    finite,
    fit,
)
from fedpeft.codecs.directions import leading_rows
from fedpeft.codecs.matrices import sides
from fedpeft.codecs.support import EXACT
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space

_MOST_RANK = 255
_LEAST = float(np.finfo(np.float32).smallest_subnormal)  # that a product may be longer by


class _Seen(NamedTuple):
    """Where a slot lies in the delta and in what is sent of it, and the directions; none: it goes whole.

    Args:
        whole: begin and end in the delta.
        sent: begin and end in what is sent.
        shape: of the slot as a matrix.
        tall: the directions are of columns (m long), so that r rows of n are sent; else of rows, and r rows of m are.
        rows: float32[r, m] or [r, n], orthonormal.
    """

    whole: tuple[int, int]
    sent: tuple[int, int]
    shape: tuple[int, int]
    tall: bool
    rows: NDArray[np.float32] | None


@dataclass(frozen=True)
class PowerSGD(Codec):
    """Send of every matrix of the delta what r public directions see: P = M Q in one round, Q = M^T P in the next.

    PowerSGD (Vogels, Karimireddy and Jaggi, 2019, arXiv 1905.13727, algorithm 1) sends both factors in turn, each the
    mean of all workers', orthogonalises the first, and starts from the last step's: M^ = P^ Q^T. Here a round carries
    one of the two, so it has half the bytes, and two rounds are one step of the algorithm. The other factor is public:
    orthonormal directions that span what the last step of the public adapter moved, whose leading singular vectors two
    multiplications by it and its transpose find, and random ones in the first round and where nothing moved. So no site
    keeps a memory of them, encoded updates can be summed, and over rounds the directions turn to the leading ones of
    what the sites have in common. Neighbouring slots take opposite sides, so that rounds of a LoRA are of one size.

    Both ends compute the directions from the same bits by the same operations in the same order, in code of our own, so
    they are the same bits on every machine. What a round does not see is for `ErrorFeedback(PowerSGD(...))` to keep.

    A slot of one dimension, or whose shorter side is no longer than the rank, goes whole; of more than two dimensions,
    the first is held against the rest.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (3, 40), "lora_A"),)), Context(round=1)
    >>> codec = PowerSGD(rank=2)
    >>> x = torch.outer(torch.ones(3), torch.arange(40.0)).reshape(-1)
    >>> sent = codec.encode(x, space, ctx)["values"].values.size
    >>> seen = codec.decode(codec.encode(x, space, ctx), space, ctx)
    >>> sent, bool(0 < seen.norm() < x.norm())
    (80, True)

    Args:
        rank: r of each slot, from 1 to 255.
        codec: what encodes the projections, as slots of the same names and of r rows; sums are exact where it is
            linear, as `Identity()` is.
    """

    rank: int = 1
    codec: Codec = EXACT

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= _MOST_RANK:
            raise ValueError(f"rank must be an integer from 1 to {_MOST_RANK}, got {self.rank!r}")
        if not isinstance(self.codec, Codec):
            raise ValueError(f"PowerSGD: codec must be a codec, got {self.codec!r}")
        if self.codec.reads:
            raise ValueError(f"PowerSGD: {self.codec!r} reads whole slots, and would get projections")

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """Both adapters that the last step lies between."""
        return frozenset({"start", "before"})

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the codec of the projections is."""
        return self.codec.linear

    def layout(self, space: Space) -> Layout:
        """The codec's, of either side."""
        return either([self.codec.layout(_sent(space, self.rank, turn)) for turn in (0, 1)])

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Project slot by slot, encode the projections."""
        x, sent = finite(delta), _sent(space, self.rank, ctx.round % 2)
        values = np.zeros(sent.numel, np.float32)
        for slot in self._slots(space, ctx):
            own, into = x[slice(*slot.whole)], values[slice(*slot.sent)]
            if slot.rows is None:
                into[:] = own
                continue
            matrix = own.reshape(slot.shape)
            kernels.add_outer(slot.rows, matrix if slot.tall else np.ascontiguousarray(matrix.T), into)
        # Not `>`: of NaN, which a difference of infinities is, neither holds.
        if not float(np.abs(values).max(initial=0.0)) * self.rank <= LARGEST:
            raise ValueError("a projection of the delta is beyond the range of float32")
        return self.codec.encode(torch.from_numpy(values), sent, ctx.nested(PROJECTIONS))

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply the projections by the same directions.

        Raises:
            PayloadError: the parts are those of the other side, or a product may be beyond float32.
        """
        return self._spread(self._values(parts, space, ctx), space, ctx)

    def sketch(self, space: Space, ctx: Context) -> Sketch:
        """The projections, decoded, then the products: directions are found once for all updates of a round."""
        least = self.rank * _LEAST * float(np.sqrt(space.numel))
        # The same vectors give the same directions; a sketch keeps them, so no other ones can have their identity.
        return Sketch(
            key=(repr(self), space.fingerprint, ctx.shared, id(ctx.start), id(ctx.before)),
            values=lambda parts: self._values(parts, space, ctx),
            spread=lambda values: self._spread(values, space, ctx),
            longest=lambda values: ROUNDING * float(np.linalg.norm(values.astype(np.float64))) + least * values.any(),
        )

    def _values(self, parts: Parts, space: Space, ctx: Context) -> NDArray[np.float32]:
        sent = _sent(space, self.rank, ctx.round % 2)
        own = fit(parts, self.codec.layout(sent))
        values: NDArray[np.float32] = self.codec.decode(own, sent, ctx.nested(PROJECTIONS)).numpy()
        if not float(np.abs(values).max(initial=0.0)) * self.rank <= LARGEST:
            raise PayloadError(Defect.NON_FINITE, "a product of projections and directions may be infinite")
        return values

    def _spread(self, values: NDArray[np.float32], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        out = np.zeros(space.numel, np.float32)
        for slot in self._slots(space, ctx):
            own, into = values[slice(*slot.sent)], out[slice(*slot.whole)]
            if slot.rows is None:
                into[:] = own
                continue
            rows = own.reshape(self.rank, -1)
            left, right = (slot.rows.T, rows) if slot.tall else (rows.T, slot.rows)
            kernels.add_outer(np.ascontiguousarray(left), right, into)
        return torch.from_numpy(out)

    def _slots(self, space: Space, ctx: Context) -> Iterator[_Seen]:
        """What is seen of each slot that has coordinates, and through which directions."""
        sent = _sent(space, self.rank, ctx.round % 2)
        for (m, n), tall, whole, part in zip(
            map(sides, space.slots),
            _sides(space, self.rank, ctx.round % 2),
            pairwise(space.bounds),
            pairwise(sent.bounds),
            strict=True,
        ):
            rows = None
            if tall is not None:
                words = ctx.shared.words(self.rank * (m + n), start=2 * whole[0])
                step = _step(ctx, slice(*whole)).reshape(m, n)
                rows = leading_rows(np.ascontiguousarray(step.T) if tall else step, self.rank, words)
            yield _Seen(whole, part, (m, n), bool(tall), rows)


def _step(ctx: Context, where: slice) -> NDArray[np.float32]:
    """What the last step moved of a slot; zeros in the first round."""
    if ctx.start is None or ctx.before is None:
        return np.zeros(where.stop - where.start, np.float32)
    return finite(ctx.start[where] - ctx.before[where])


@lru_cache(maxsize=64)
def _sides(space: Space, rank: int, turn: int) -> tuple[bool | None, ...]:
    """Of each slot, whether the directions are those of columns this turn; None where it goes whole."""
    turned: list[bool | None] = []
    shorter = turn == 1
    for m, n in map(sides, space.slots):
        if min(m, n) <= rank:
            turned.append(None)
            continue
        turned.append((m <= n) == shorter)
        shorter = not shorter
    return tuple(turned)


@lru_cache(maxsize=64)
def _sent(space: Space, rank: int, turn: int) -> Space:
    """Slots of the same names that hold what is sent of each."""
    slots = []
    for slot, tall in zip(space.slots, _sides(space, rank, turn), strict=True):
        m, n = sides(slot)
        shape = slot.shape if tall is None else (rank, n if tall else m)
        slots.append(Slot(slot.name, shape, slot.role))
    return Space(tuple(slots), space.config, space.base)
