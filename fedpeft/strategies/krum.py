"""Krum: the updates that have the most company."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Strategy, Update, check, check_number
from fedpeft.strategies.folding import gram
from fedpeft.strategies.mean import Mean


@dataclass(frozen=True)
class Krum(Strategy):
    """The update with the least sum of squared distances to its n - f - 2 nearest; of several, their plain mean.

    Blanchard, El Mhamdi, Guerraoui and Stainer, 2017, arXiv 1703.02757, section 4, with f = `byzantine`; `keep` > 1
    is their Multi-Krum. It needs n >= 2 f + 3, and no more are kept than are honest. Weights, which sites report of
    themselves, count for nothing. Flower's `MultiKrum` computes each distance from both vectors in float32; here all
    of them come from one Gram matrix in float64, by popcount where updates are ternary.

    Memory: all updates as they were sent (d / 4 bytes each where they are ternary, else 4 d), and blocks of 8 MiB.

    Args:
        byzantine: how many of the updates may be hostile, >= 0.
        keep: how many are averaged, >= 1.
    """

    ternary: ClassVar[bool] = True

    byzantine: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise ValueError(f"byzantine must be at least 0, got {self.byzantine}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    @property
    def least(self) -> int:
        """2 f + 3, and f more than are kept."""
        return max(2 * self.byzantine + 3, self.byzantine + self.keep)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The mean of those with the least score; the first of equals."""
        held = all_of(self, updates, ctx)
        order = scores(squared_distances(held, ctx), self.byzantine).argsort(stable=True)
        return Mean().merge([replace(held[i], weight=1.0) for i in sorted(order[: self.keep].tolist())], ctx)


def all_of(strategy: Strategy, updates: Sequence[Update], ctx: Context) -> list[Update]:
    """The updates, each decoded once and kept as it was sent.

    Raises:
        ValueError: they are too few, one has another size, or a weight is not positive and finite.
    """
    check_number(strategy, updates)
    held = list(updates)
    check(held, ctx)
    return held


def squared_distances(updates: Sequence[Update], ctx: Context) -> Float[Tensor, "n n"]:
    """Between every two updates, float64, from their Gram matrix."""
    products = gram(updates, ctx)
    norms = products.diagonal()
    return (norms[:, None] + norms[None] - 2 * products).clamp_(min=0)


def scores(squared: Float[Tensor, "n n"], byzantine: int) -> Float[Tensor, " n"]:
    """Of each, the sum of squared distances to its n - f - 2 nearest others; 0 where that is nobody."""
    others = squared + torch.diag(squared.new_full((len(squared),), torch.inf))
    return others.sort(dim=1).values[:, : max(0, len(squared) - byzantine - 2)].sum(dim=1)
