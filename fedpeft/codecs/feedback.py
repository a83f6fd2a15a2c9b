"""Error feedback: what a codec loses in one round is added to what it encodes in the next."""

from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Codec, Context, Parts
from fedpeft.codecs.clip import Clip
from fedpeft.space import Space


@dataclass(frozen=True)
class ErrorFeedback:
    """A codec whose losses are remembered: encode w = x + decay * e, and keep e = w - decode(encode(w)).

    Seide et al., 2014 (1-bit SGD); Karimireddy, Rebjock, Stich and Jaggi, 2019, arXiv 1901.09847, algorithm 2. It is
    no codec itself: the residual e is the one state of compression, it belongs to the client, and the server decodes
    with `codec` alone. `decay` < 1 forgets, as momentum does (SparseLoCo, 2025, arXiv 2508.15706), once for every
    round: also for those in which the client was not asked, so that little is left of an old residual.

    `clip` bounds x, so that one wild round cannot fill the residual; w is not bounded by it, since e is not. A bound on
    what the codec is given stands inside, `ErrorFeedback(chain(Clip(1.0), ...))`, and what it cuts off is kept for
    later rounds. What is decoded may be longer than either: see `Clip`.

    The residual stays bounded where the codec shrinks what it is given: `Ternary` with `scale="mean"` does, at any
    density; with "norm" or "unbiased" at low density it grows, and then needs `decay` < 1.

    Args:
        codec: what encodes.
        decay: share of the residual that a round carries over, in [0, 1].
        clip: L2 norm that a delta is scaled down to before the residual is added; None for no bound.
    """

    codec: Codec
    decay: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.codec, Codec):
            raise ValueError(f"ErrorFeedback wraps a codec, got {self.codec!r}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")
        if self.clip is not None and not (self.clip > 0 and isfinite(self.clip)):
            raise ValueError(f"clip must be positive and finite, got {self.clip}")

    def carry(self, residual: Float[Tensor, " d"], missed: int = 0) -> Float[Tensor, " d"]:
        """What a round has of a residual: decay * e.

        Args:
            residual: as the client's last round left it; zeros at first.
            missed: rounds since then in which the client sent nothing.
        """
        return self.decay ** (1 + missed) * residual

    def encode(
        self, delta: Float[Tensor, " d"], carried: Float[Tensor, " d"], space: Space, ctx: Context
    ) -> tuple[Parts, Float[Tensor, " d"]]:
        """The parts to send and the residual to keep, on the host.

        Args:
            delta: of this round.
            carried: from the rounds before, as `carry` gives it.
            space: of both.
            ctx: of this round.
        """
        # Nothing but `wanted` and what is decoded stays while codecs work, and the residual lies where that did.
        wanted = self._bounded(delta.detach(), space, ctx) + carried.to(delta.device)
        parts = self.codec.encode(wanted, space, ctx)
        decoded = self.codec.decode(parts, space, ctx)
        return parts, torch.sub(wanted.cpu(), decoded, out=decoded)

    def _bounded(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        return delta if self.clip is None else Clip(self.clip).forward(delta, space, ctx)
