"""The B that answers, on every site's data, most nearly as that site's own B does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Slot
from fedpeft.strategies.base import Additive, Context, Summands, Update
from fedpeft.strategies.statistics import gram_slots, statistic_space


@dataclass(frozen=True)
class RegMean(Additive):
    """Regression mean of each LoRA B, from r x r Grams: B = (sum_k n_k B_k G_k) (sum_k n_k G_k)^-1.

    Jin, Ren, Preotiuc-Pietro and Cheng, 2022, arXiv 2212.09849: it minimises sum_k n_k E |B z - B_k z|^2 over the
    inputs z = A x of B on site k, where G_k = E[z z^T]; off-diagonals are multiplied by 1 - `shrink`, their alpha. That
    is exact where A is frozen or the same everywhere. Where every site trains its own A, the merged A gives other
    inputs, and the result is an approximation. All other slots, A and linear heads too, get the weighted mean: a Gram
    of a head's inputs would be larger than the head.

    It differs from other implementations, which sum Z^T Z over as many examples of each task: the means G_k are
    weighted by n_k; and in its ridge towards the weighted mean, which is what remains where nothing is known, where
    they invert. All sites begin at one adapter, so the rule on deltas is the rule on adapters. A site that claims huge
    activations has all the say in a slot unless `normalise` is set.

    >>> from fedpeft.space import Space
    >>> ctx = Context(Space((Slot("q.lora_B", (1, 2), "lora_B"),)))
    >>> grams = torch.tensor([3.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    >>> deltas = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 5.0])
    >>> cohort = [Update(delta, statistics={"gram": gram}) for delta, gram in zip(deltas, grams)]
    >>> RegMean().merge(cohort, ctx).round(decimals=3)
    tensor([0.7500, 5.0000])

    Args:
        shrink: how much of the off-diagonals is taken away, in [0, 1]; 1: a weighted mean of B's columns.
        ridge: of the trace of the sum of Grams, in (0, 1]; from 1e-6 on, no Grams that a server lets pass are singular.
        normalise: divide each Gram by its trace.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    shrink: float = 0.1
    ridge: float = 1e-6
    normalise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must lie in [0, 1], got {self.shrink}")
        if not 0 < self.ridge <= 1:
            raise ValueError(f"ridge must lie in (0, 1], got {self.ridge}")

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, the weight, and for each B the weighted Gram and its product with the delta."""
        delta = update.delta.double()
        grams, products = [], []
        for slot, gram in self._grams(update.statistics["gram"], ctx):
            grams.append(gram.mul_(update.weight).reshape(-1))
            products.append((ctx.space.view(delta, slot.name) @ gram).reshape(-1))
        return {
            "sum": delta * update.weight,
            "weight": torch.tensor(update.weight, dtype=torch.float64),
            "gram": torch.cat(grams),
            "product": torch.cat(products),
        }

    def _grams(self, statistic: Float[Tensor, " s"], ctx: Context) -> Iterator[tuple[Slot, Float[Tensor, "r r"]]]:
        """Each slot with its Gram in float64, symmetric, its off-diagonals shrunk."""
        own = statistic_space("gram", ctx.space)
        for slot in gram_slots(ctx.space):
            gram = own.view(statistic, slot.name).double()
            gram = (gram + gram.T) / 2
            diagonal = gram.diagonal()
            if self.normalise and (trace := float(diagonal.sum())) > 0:
                gram = gram / trace
                diagonal = gram.diagonal()
            yield slot, gram * (1 - self.shrink) + torch.diag(diagonal * self.shrink)

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The weighted mean, and in it each B as its regression has it."""
        merged = total["sum"] / total["weight"]
        own, begin = statistic_space("gram", ctx.space), 0
        for slot in gram_slots(ctx.space):
            mean = ctx.space.view(merged, slot.name)
            gram = own.view(total["gram"], slot.name)
            product = total["product"][begin : begin + slot.numel].view(slot.shape)
            begin += slot.numel
            pull = self.ridge * float(gram.trace()) or 1.0
            known = gram + pull * torch.eye(len(gram), dtype=torch.float64)
            mean.copy_(torch.linalg.solve(known, (product + pull * mean).T).T)
        return merged.float()
