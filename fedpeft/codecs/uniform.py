"""Uniform scalar quantisation: integers of a few bits and one step a slot."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, Symbols, finite, take
from fedpeft.codecs.scaled import longest_step, scaled
from fedpeft.space import Space


@dataclass(frozen=True)
class Uniform(Codec):
    """Round every number to a multiple of its slot's step: x^ = step * round(x / step).

    The symmetric mid-tread quantiser with 2^bits - 1 levels and step = max|x| / (2^(bits - 1) - 1) in each slot. The
    levels are far from equally used, and the wire's entropy coder takes what that saves.

    Args:
        bits: 2 to 8.
        stochastic: round up or down at random in proportion, so that the mean is x (QSGD, Alistarh et al., 2017,
            arXiv 1610.02132, with the maximum norm as in TernGrad, Wen et al., 2017, arXiv 1705.07878).
    """

    bits: int = 8
    stochastic: bool = False

    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {self.bits!r}")

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether rounding is stochastic."""
        return self.stochastic

    @property
    def _half(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def layout(self, space: Space) -> Layout:
        """One step a slot and one code a coordinate."""
        return {
            "step": Field("numbers", len(space.slots)),
            "code": Field("symbols", space.numel, levels=2 * self._half + 1),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Quantise slot by slot."""
        x, edges = finite(delta), np.array(space.bounds)
        largest = kernels.block_largest(x, edges) / np.float64(self._half)
        steps = np.minimum(largest, longest_step(self._half)).astype(np.float32)
        words = ctx.private.words(space.numel) if self.stochastic else None
        codes = kernels.round_blocks(x, edges, steps, self._half, words)
        return {"step": Numbers(steps), "code": Symbols(codes, 2 * self._half + 1)}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply codes by steps.

        Raises:
            PayloadError: a step is beyond what a float32 delta can have.
        """
        steps, codes = take(parts, "step", Numbers).values, take(parts, "code", Symbols).values
        multiples = np.arange(-self._half, self._half + 1, dtype=np.float32)
        return scaled(codes, np.array(space.bounds), multiples, steps)
