"""The geometric median: the point whose distances to the updates have the least sum."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update

_STEPS, _LOWEST, _BINS = 4, -160, 1280  # bins an octave; the first octave; bins: to 2^160, beyond any norm of float32


@dataclass(frozen=True)
class GeometricMedian(Additive):
    """argmin_v sum_k n_k ||x_k - v||, by the smoothed Weiszfeld iteration.

    Pillutla, Kakade and Harchaoui, 2022, arXiv 1912.13445 (RFA), section 3: v becomes the mean of the updates with
    weights n_k / max(nu, ||x_k - v||). The authors' code begins at the mean, from where each iteration forgets about
    half of what a far update has done; here v begins at 0 with the median of the norms for nu, so neither a huge
    update nor one near 0 decides where the iteration begins. After that nu is `epsilon` of that median, which is a
    sum too: of the weights in each quarter of an octave. The weights are those that sites report of themselves.

    Args:
        iterations: >= 1; each reads all updates once, and the norms take one pass more.
        epsilon: the smoothing nu, as a share of the median norm, > 0.
    """

    iterations: int = 8
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must lie in (0, 1], got {self.epsilon}")

    @property
    def passes(self) -> int:
        """One for the norms, and one for each iteration."""
        return self.iterations + 1

    def lift(self, update: Update, ctx: Context) -> Summands:
        """First the weight, in the bin of the norm; then the delta over its distance, and what it was multiplied by."""
        x = update.delta.double()
        if "norm" not in ctx.told:
            bins = torch.zeros(_BINS, dtype=torch.float64)
            bins[_bin(float(x.norm()))] = update.weight
            return {"norms": bins}
        norm = float(ctx.told["norm"])
        if "centre" in ctx.told:
            factor = update.weight / max(float((x - ctx.told["centre"]).norm()), self.epsilon * norm)
        else:
            factor = update.weight / max(float(x.norm()), norm)
        return {"sum": x * factor, "weight": torch.tensor(factor, dtype=torch.float64)}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """First the median norm; then the next centre."""
        if "norms" in total:
            below = total["norms"].cumsum(0)
            middle = int(torch.searchsorted(below, below[-1:] / 2))
            norm = 2.0 ** ((middle + 1) / _STEPS + _LOWEST)
            return Broadcast({"norm": torch.tensor(norm, dtype=torch.float64)})
        centre = total["sum"] / total["weight"]
        done = ctx.told.get("done", torch.zeros((), dtype=torch.float64)) + 1
        if int(done) == self.iterations:
            return centre.float()
        return Broadcast({"norm": ctx.told["norm"], "centre": centre, "done": done})


def _bin(norm: float) -> int:
    if norm == 0:
        return 0
    return min(max(math.floor(_STEPS * (math.log2(norm) - _LOWEST)), 0), _BINS - 1)
