"""Coordinates compete: those that are large in an update and agree with the others' sum carry the merge."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update

_TAIL = 1e-4
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class PCB(Additive):
    """PCB-Merging, in two passes of sums.

    Du et al., 2024, arXiv 2410.02396, as in the authors' `pcb-merging.py`, over the whole adapter. Of an
    update tau_i, with its largest and smallest 0.01 % of sizes clamped and sizes mapped to x in [0, 1]:
    intra = exp(n x^2), inter = tanh(tau_i sum_j tau_j), score = intra inter; scores below the top `density` count as
    the threshold itself, and share_i is the score mapped to [0, 1]. Merged: sum_i share_i tau_i / sum_i share_i. The
    first pass finds sum_j tau_j, the second adds up shares.

    It differs from that code in these: the exponent is n (x^2 - 1), the same shares, which cannot overflow (in float32
    theirs does from n = 89 on); where all sizes or the best scores are one number their 0 / 0 is no preference here;
    weights multiply shares, and the sum that scores are taken with is n times the weighted mean. With a small delta
    tanh is a straight line and with a large one a sign, so the result depends on the scale of updates; of a ternary
    update intra is the same wherever it is not zero.

    >>> from fedpeft.space import Slot, Space
    >>> ctx = Context(Space((Slot("a", (4,), "head"),)))
    >>> rows = [3.0, -1.0, 3.0, 0.0], [1.0, 2.0, 0.0, 2.0]
    >>> PCB(density=0.5).merge([Update(torch.tensor(row)) for row in rows], ctx)
    tensor([3., 0., 0., 2.])

    Args:
        density: of an update's coordinates that score above the threshold, in (0, 1].
        scale: that the merged delta is multiplied by; the paper's lambda, 1.2 in its examples.
    """

    density: float = 0.1
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if not 0 < self.scale < 1e30:
            raise ValueError(f"scale must lie in (0, 1e30), got {self.scale}")

    @property
    def passes(self) -> int:
        """One for the sum of updates, one for their shares."""
        return 2

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta and the number of clients; then the shares, and the delta times its shares."""
        delta = update.delta.to(torch.float64, copy=True)
        if "count" not in ctx.told:
            weight, one = (torch.tensor(x, dtype=torch.float64) for x in (update.weight, 1.0))
            return {"sum": delta.mul_(update.weight), "weight": weight, "count": one}
        size = _without_tails(delta.abs())
        scores = torch.exp(ctx.told["count"] * (_to_unit(size).square_() - 1))
        scores *= torch.tanh(delta * ctx.told["sum"])
        share = self._share(scores).mul_(update.weight)
        return {"sum": size.mul_(delta.sign()).mul_(share), "share": share}

    def _share(self, scores: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Scores from the threshold to the best, as 0 to 1."""
        d = scores.numel()
        threshold = _smallest(scores, min(int(d * (1 - self.density)), d - 1))
        best = scores.max()
        if threshold == best:
            return ((scores == best) & (scores != 0)).double()
        return _to_unit(scores.clamp_(min=threshold))

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The sum of updates; then the mean by shares, and nothing where there is next to none."""
        if "count" not in ctx.told:
            mean = total["weight"] / total["count"]
            return Broadcast({"sum": total["sum"] / mean, "count": total["count"], "mean_weight": mean})
        return (total["sum"] / total["share"].clamp(min=_LEAST_SHARE * ctx.told["mean_weight"]) * self.scale).float()


def _without_tails(size: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Sizes, the few smallest and largest of them clamped to those beside; the largest one always is."""
    d = size.numel()
    low, high = _smallest(size, int(d * _TAIL)), _smallest(size, int(d * (1 - _TAIL) - 1))
    return size.clamp(low, high)


def _smallest(x: Float[Tensor, " d"], i: int) -> Float[Tensor, ""]:
    """The number that would stand at place i, from 0, if they were sorted."""
    return torch.kthvalue(x, i + 1).values


def _to_unit(x: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The smallest as 0, the largest as 1; all 0 where they are one number."""
    low, high = torch.aminmax(x)
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)
