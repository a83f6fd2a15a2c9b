"""Error feedback: what a codec loses in one round is added to what it encodes in the next."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Codec, Context, Parts
from fedpeft.space import Space


@dataclass(frozen=True)
class ErrorFeedback:
    """A codec whose losses are remembered: encode x + decay * e, and keep e = (x + decay * e) - decode(...).

    Seide et al., 2014 (1-bit SGD); Karimireddy, Rebjock, Stich and Jaggi, 2019, arXiv 1901.09847, algorithm 2. It is
    no codec itself: the residual e is the one state of compression, it belongs to the client, and the server decodes
    with `codec` alone. `decay` < 1 forgets (SparseLoCo, 2025, arXiv 2508.15706).

    The residual stays bounded where the codec shrinks what it is given: `Ternary` with `scale="mean"` does, at any
    density; with "norm" or "unbiased" at low density it grows, and then needs `decay` < 1.

    Args:
        codec: what encodes.
        decay: share of the residual that is carried over, in [0, 1].
    """

    codec: Codec
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.codec, Codec):
            raise ValueError(f"ErrorFeedback wraps a codec, got {self.codec!r}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")

    def encode(
        self, delta: Float[Tensor, " d"], residual: Float[Tensor, " d"], space: Space, ctx: Context
    ) -> tuple[Parts, Float[Tensor, " d"]]:
        """The parts to send and the residual to keep."""
        wanted = delta + self.decay * residual
        parts = self.codec.encode(wanted, space, ctx)
        return parts, wanted - self.codec.decode(parts, space, ctx)
