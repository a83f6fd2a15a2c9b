"""Centred clipping: how far one site can pull is bounded by a radius."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update


@dataclass(frozen=True)
class CentredClip(Additive):
    """v + 1/n sum_k (x_k - v) min(1, radius / ||x_k - v||), repeated, from v = 0.

    Karimireddy, He and Jaggi, 2021, arXiv 2012.10333, section 4 (tau is `radius`). The paper clips the sites'
    momenta and begins at the aggregate of the step before; here deltas are clipped, and v begins at the global
    adapter, so that nothing is carried from round to round. What one of n sites sends moves the result by at most
    2 radius / n in each iteration. Weights, which sites report of themselves, count for nothing.

    Args:
        radius: > 0; about the distance that honest deltas have to their mean.
        iterations: >= 1; each reads all updates once.
    """

    radius: float
    iterations: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius must be positive and finite, got {self.radius}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    @property
    def passes(self) -> int:
        """One for each iteration."""
        return self.iterations

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The clipped way from the centre to the client, and a one."""
        away = update.delta.double()
        if "centre" in ctx.told:
            away = away - ctx.told["centre"]
        factor = min(1.0, self.radius / max(float(away.norm()), self.radius))
        return {"sum": away * factor, "number": torch.tensor(1.0, dtype=torch.float64)}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The next centre."""
        centre = total["sum"] / total["number"]
        if "centre" in ctx.told:
            centre += ctx.told["centre"]
        done = ctx.told.get("done", torch.zeros((), dtype=torch.float64)) + 1
        return centre.float() if int(done) == self.iterations else Broadcast({"centre": centre, "done": done})
