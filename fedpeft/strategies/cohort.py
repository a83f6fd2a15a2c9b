"""Strategies that merge the LoRA products of all clients, layer by layer, from the list of them."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Update, check, check_number
from fedpeft.strategies.factors import Factors, shares_of
from fedpeft.strategies.lora import Module, modules
from fedpeft.strategies.of_products import OfProducts


@dataclass(frozen=True, eq=False)
class Cohort:
    """The adapters of all clients, held in float32: n d numbers.

    Args:
        ctx: what they are merged into.
        adapters: one for each client, shape (d,).
        shares: their weights over the sum of these.
        mean: the weighted mean of deltas, shape (d,).
    """

    ctx: Context
    adapters: Sequence[Float[Tensor, " d"]]
    shares: Sequence[float]
    mean: Float[Tensor, " d"]

    @staticmethod
    def read(updates: Sequence[Update], ctx: Context) -> "Cohort":
        """Decode every update once."""
        adapters, weights, total = [], [], torch.zeros(ctx.space.numel, dtype=torch.float64)
        for update in updates:
            check([update], ctx)
            delta, weight = update.delta, update.weight
            adapters.append(ctx.adapter(Update(delta, weight)))
            weights.append(weight)
            total.add_(delta.double(), alpha=weight)
        return Cohort(ctx, adapters, shares_of(weights), (total / sum(weights)).float())

    def factors(self, module: Module) -> list[Factors]:
        """A layer's factors, of every client."""
        return [module.factors(self.ctx.space, adapter) for adapter in self.adapters]

    def start(self, module: Module) -> Factors | None:
        """A layer's factors that training began at."""
        return None if self.ctx.start is None else module.factors(self.ctx.space, self.ctx.start)


class ByProduct(OfProducts):
    """A strategy that gives every layer's LoRA new factors; all other slots get the weighted mean.

    The factors of one product are not unique: (B, A) and (B G, G^-1 A) are one adapter. What is merged is the product,
    so clients may differ in G, and the factors that come out are no client's, even where there is one client only:
    they are balanced, and turned towards the start (`Spectrum.balanced`).

    Memory: all adapters in float32, and one layer's in float64.
    """

    @abstractmethod
    def products(self, cohort: Cohort) -> Iterator[tuple[Module, Factors]]:
        """Every layer's new factors, in any order."""

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Read all updates, then give one layer after the other."""
        check_number(self, updates)
        cohort = Cohort.read(updates, ctx)
        for module, found in self.products(cohort):
            write(module, found, cohort.mean, ctx)
        return cohort.mean


def write(module: Module, found: Factors, delta: Float[Tensor, " d"], ctx: Context) -> None:
    """Set a layer's part of a delta to what leads from the start to new factors."""
    start = module.factors(ctx.space, ctx.start)
    ctx.space.view(delta, module.b).copy_(found.b - start.b)
    ctx.space.view(delta, module.a).copy_(found.a - start.a)


def layers(cohort: Cohort) -> tuple[Module, ...]:
    """The layers of the cohort's space."""
    return modules(cohort.ctx.space)
