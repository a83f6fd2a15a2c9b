"""The mean of parameters weighted by what each site's data says of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update


@dataclass(frozen=True)
class Fisher(Additive):
    """Fisher merging: sum_k n_k F_k x_k / sum_k n_k F_k, coordinate by coordinate.

    Matena and Raffel, 2021, arXiv 2111.09832, with n_k for their lambda_k; F_k is the diagonal of the Fisher
    information of site k's adapter after its training. As in their code a weight is at least `floor`, so where no site
    knows anything the plain mean stands, and each F_k is divided by its L2 norm over the whole adapter: sites then
    differ in what they are sure of and not in how sure they are. Without that, one site that claims a huge F has all
    the say, and nothing on the way stops it. All sites begin at one adapter, so the rule on deltas is the rule on
    adapters. FusionBench adds its floor instead.

    >>> from fedpeft.space import Slot, Space
    >>> ctx, sure = Context(Space((Slot("a", (2,), "head"),))), torch.tensor([3.0, 0.0])
    >>> unsure = Update(torch.tensor([0.0, 4.0]), statistics={"fisher": torch.tensor([1.0, 0.0])})
    >>> Fisher(normalise=False).merge([Update(torch.ones(2), statistics={"fisher": sure}), unsure], ctx)
    tensor([0.7500, 2.5000])

    Args:
        floor: the least weight of a coordinate, > 0.
        normalise: divide each F_k by its norm.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"fisher"})

    floor: float = 1e-6
    normalise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.floor < 1e30:
            raise ValueError(f"floor must lie in (0, 1e30), got {self.floor}")

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, and the weight of each coordinate."""
        fisher = update.statistics["fisher"].to(torch.float64, copy=True)
        if self.normalise and (norm := float(torch.linalg.vector_norm(fisher))):
            fisher /= norm
        weight = fisher.clamp_(min=self.floor).mul_(update.weight)
        return {"sum": weight * update.delta, "weight": weight}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The quotient of the sums."""
        return (total["sum"] / total["weight"]).float()
