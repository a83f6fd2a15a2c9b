"""Codecs that carry a part of the adapter's slots in a round, and other ones in the next."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import PIECE, Choice, Codec, Context, Layout, Parts, Sketch, either, empty, fit
from fedpeft.space import Space


@dataclass(frozen=True)
class Partial(Codec):
    """Send one piece of the space each round, in turn: round t carries piece (t - 1) mod m.

    Args:
        codec: what encodes the piece, in the space of its slots alone.
    """

    codec: Codec

    def __post_init__(self) -> None:
        if not isinstance(self.codec, Codec):
            raise ValueError(f"{type(self).__name__}: codec must be a codec, got {self.codec!r}")

    @abstractmethod
    def pieces(self, space: Space) -> tuple[Space, ...]:
        """The m pieces; they need not cover the space, and may overlap."""

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the codec of a piece is."""
        return self.codec.linear

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What the codec of a piece reads."""
        return self.codec.reads

    def carried(self, space: Space, ctx: Context) -> Space:
        """The piece whose turn it is."""
        piece = self._piece(space, ctx)
        return self.codec.carried(piece, ctx.inside(space, piece, PIECE))

    def layout(self, space: Space) -> Layout:
        """The parts of any piece."""
        return either([self.codec.layout(piece) for piece in self.pieces(space)])

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Take the piece's slots out and encode them."""
        if len(wrong := torch.isfinite(delta).logical_not().nonzero()):
            raise ValueError(f"coordinate {int(wrong[0])} of the delta is not finite")
        piece = self._piece(space, ctx)
        parts = self.codec.encode(space.take(delta, piece), piece, ctx.inside(space, piece, PIECE))
        return {name: parts[name] if name in parts else empty(field) for name, field in self.layout(space).items()}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The piece in its place, and zeros.

        Raises:
            PayloadError: the parts are not those of this round's piece.
        """
        piece = self._piece(space, ctx)
        own = fit(parts, self.codec.layout(piece))
        return _placed(self.codec.decode(own, piece, ctx.inside(space, piece, PIECE)), piece, space)

    def sketch(self, space: Space, ctx: Context) -> Sketch | None:
        """The piece's, which is then put in its place."""
        piece = self._piece(space, ctx)
        inner = self.codec.sketch(piece, ctx.inside(space, piece, PIECE))
        if inner is None:
            return None
        return replace(
            inner,
            key=(repr(self), space.fingerprint, inner.key),
            values=lambda parts: inner.values(fit(parts, self.codec.layout(piece))),
            spread=lambda values: _placed(inner.spread(values), piece, space),
        )

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, Choice]:
        """What the piece's codec has chosen."""
        piece = self._piece(space, ctx)
        own = fit(parts, self.codec.layout(piece))
        return self.codec.chosen(own, piece, ctx.inside(space, piece, PIECE))

    def _piece(self, space: Space, ctx: Context) -> Space:
        pieces = self.pieces(space)
        return pieces[max(ctx.round - 1, 0) % len(pieces)]


def _placed(vector: Float[Tensor, " p"], piece: Space, space: Space) -> Float[Tensor, " d"]:
    """A piece's slots where they belong, and zeros."""
    delta = torch.zeros(space.numel, dtype=torch.float32, device="cpu")
    for slot in piece.slots:
        space.view(delta, slot.name).copy_(piece.view(vector, slot.name))
    return delta
