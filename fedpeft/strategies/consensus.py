"""Only coordinates that enough clients have a use for stay in the mean."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update


@dataclass(frozen=True)
class Consensus(Additive):
    """Consensus merging: TALL masks as votes, in two passes of sums.

    Wang, Dimitriadis, Ortiz-Jiménez, Fleuret and Frossard, 2024, arXiv 2405.07813. The first pass
    finds the weighted mean tau_MT; in the second, client i votes for the coordinates of its mask
    m_i = [|tau_i| >= lambda |tau_MT - tau_i|]; of tau_MT, those with at least `agree` votes stay. agree = 1 removes
    what is of use to nobody, agree = 2 also what serves a single client. A client has one vote whatever its weight.

    It differs from the authors' code in these: one lambda for all clients, where they choose one for each task on
    validation data out of 0.2 to 0.6; tau_MT is the mean, where they take the sum times a factor chosen the same way;
    and equality is a vote, as in the paper.

    >>> from fedpeft.space import Slot, Space
    >>> ctx = Context(Space((Slot("a", (3,), "head"),)))
    >>> rows = [2.0, 8.0, 1.0], [4.0, 0.0, -1.0]
    >>> Consensus().merge([Update(torch.tensor(row)) for row in rows], ctx)
    tensor([3., 0., 0.])

    Args:
        threshold: lambda, > 0; the higher, the fewer votes.
        agree: votes that a coordinate needs, from 1; so many updates there must be.
    """

    threshold: float = 0.4
    agree: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1e30:
            raise ValueError(f"threshold must lie in (0, 1e30), got {self.threshold}")
        if self.agree < 1:
            raise ValueError(f"agree must be at least 1, got {self.agree}")

    @property
    def passes(self) -> int:
        """One for the mean, one for the votes."""
        return 2

    @property
    def least(self) -> int:
        """Fewer could not agree on anything."""
        return self.agree

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, and the weight; then the votes."""
        delta = update.delta.to(torch.float64, copy=True)
        if "mean" not in ctx.told:
            weight = torch.tensor(update.weight, dtype=torch.float64)
            return {"sum": delta.mul_(update.weight), "weight": weight}
        off = (ctx.told["mean"] - delta).abs_().mul_(self.threshold)
        return {"votes": (delta.abs_() >= off).double()}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The mean; then what of it was elected."""
        if "mean" not in ctx.told:
            return Broadcast({"mean": total["sum"] / total["weight"]})
        return torch.where(total["votes"] >= self.agree, ctx.told["mean"], 0.0).float()
