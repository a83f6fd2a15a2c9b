"""Uniform scalar quantisation: integers of a few bits and one step a slot."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, Symbols, take
from fedpeft.errors import Defect, PayloadError
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
        x = delta.detach().cpu().float()
        steps = torch.zeros(len(space.slots))
        codes = torch.empty(space.numel, dtype=torch.uint8)
        # In float64, which holds all 32 bits: in float32 a noise close to 1 would round up to it.
        noise = torch.from_numpy(ctx.private.words(space.numel) * 2.0**-32) if self.stochastic else None
        for j, (begin, end) in enumerate(zip(space.bounds, space.bounds[1:], strict=False)):
            largest = float(x[begin:end].abs().max()) if end > begin else 0.0
            step = torch.tensor(largest / self._half)
            if step == 0:
                codes[begin:end] = self._half
                continue
            steps[j] = step
            scaled = x[begin:end] / step
            scaled = scaled.round_() if noise is None else (scaled + noise[begin:end]).floor_()
            codes[begin:end] = (scaled.clamp_(-self._half, self._half) + self._half).to(torch.uint8)
        return {"step": Numbers(steps.numpy()), "code": Symbols(codes.numpy(), 2 * self._half + 1)}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply codes by steps.

        Raises:
            PayloadError: a step is beyond what a float32 delta can have.
        """
        steps, codes = take(parts, "step", Numbers), take(parts, "code", Symbols)
        largest = float(np.abs(steps.values).max(initial=0.0)) * self._half
        if largest > float(np.finfo(np.float32).max):
            raise PayloadError(Defect.NON_FINITE, f"{self._half} steps of the largest are not finite")
        out = torch.from_numpy(codes.values.astype(np.float32)).sub_(self._half)
        for step, begin, end in zip(steps.values.tolist(), space.bounds, space.bounds[1:], strict=False):
            out[begin:end] *= step
        return out
