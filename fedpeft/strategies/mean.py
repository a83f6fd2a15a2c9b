"""The weighted mean of deltas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update, check, check_number
from fedpeft.strategies.folding import add_weighted, all_dense, blocks, empty, mean_of_dense, zeros


@dataclass(frozen=True)
class Mean(Additive):
    """FedAvg: sum_k n_k x_k / sum_k n_k.

    McMahan, Moore, Ramage, Hampson and Agüera y Arcas, 2017, arXiv 1602.05629, algorithm 1. On LoRA factors it is
    FedIT (Zhang et al., 2023, arXiv 2305.05644): the mean of A and the mean of B, not of their products.

    >>> from fedpeft.space import Slot, Space
    >>> ctx = Context(Space((Slot("a", (2,), "head"),)))
    >>> Mean().merge([Update(torch.tensor([1.0, 0.0]), 3.0), Update(torch.tensor([0.0, 4.0]), 1.0)], ctx)
    tensor([0.7500, 1.0000])
    """

    ternary: ClassVar[bool] = True
    averaging: ClassVar[bool] = True

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, and the weight."""
        weighted = update.delta.to(torch.float64, copy=True).mul_(update.weight)
        return {"sum": weighted, "weight": torch.tensor(update.weight, dtype=torch.float64)}

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Add all of them block by block, and ternary ones from their bit planes."""
        if not total:
            total |= {"sum": zeros(ctx.space.numel), "weight": torch.zeros((), dtype=torch.float64)}
        weights = [update.weight for update in updates]
        add_weighted(total["sum"], updates, weights)
        for weight in weights:
            total["weight"] += weight

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The quotient of the sums."""
        merged = empty(ctx.space.numel)
        for block, sums in blocks(total, ctx.space.numel):
            merged[block] = sums["sum"] / sums["weight"]
        return merged

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Fold the updates; dense ones that are in memory anyway block by block, without a sum of the whole."""
        if type(self) is not Mean or not isinstance(updates, list | tuple) or not all_dense(updates):
            return super().merge(updates, ctx)
        check_number(self, updates)
        check(updates, ctx)
        return mean_of_dense(updates, ctx.space.numel)
