"""Coordinate-wise median and trimmed mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Strategy, Update, check_number
from fedpeft.strategies.columns import columns


@dataclass(frozen=True)
class Median(Strategy):
    """In each coordinate the median of the updates, and the mean of the middle two where their number is even.

    Yin, Chen, Ramchandran and Bartlett, 2018, arXiv 1803.01498, definition 1. Whatever fewer than half of the sites
    send, the result stays in the range of the others. On sparse updates, where fewer than half of the sites move a
    coordinate, it is 0. Weights, which sites report of themselves, count for nothing.

    Memory: all updates as they were sent (d / 4 bytes each where they are ternary, else 4 d), and blocks of 4 MiB.
    """

    ternary: ClassVar[bool] = True

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The middle of each coordinate."""
        check_number(self, updates)
        return _middle(updates, (len(updates) - 1) // 2, ctx)


@dataclass(frozen=True)
class TrimmedMean(Strategy):
    """In each coordinate the mean of what is left without the largest and the smallest values.

    Yin, Chen, Ramchandran and Bartlett, 2018, arXiv 1803.01498, definition 2: floor(fraction n) values are dropped at
    either end. Where no more sites than that are hostile, the result stays in the range of the others. Weights, which
    sites report of themselves, count for nothing.

    Memory: all updates as they were sent (d / 4 bytes each where they are ternary, else 4 d), and blocks of 4 MiB.

    Args:
        fraction: of the values, dropped at either end, in [0, 0.5).
    """

    ternary: ClassVar[bool] = True

    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 0.5:
            raise ValueError(f"fraction must lie in [0, 0.5), got {self.fraction}")

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The mean of the middle of each coordinate."""
        check_number(self, updates)
        return _middle(updates, int(round(self.fraction * len(updates), 9)), ctx)


def _middle(updates: Sequence[Update], dropped: int, ctx: Context) -> Float[Tensor, " d"]:
    merged = torch.empty(ctx.space.numel)
    for where, block in columns(updates, ctx):
        kept = block.sort(dim=0).values[dropped : len(block) - dropped]
        merged[where] = kept.mean(dim=0, dtype=torch.float64).float()
    return merged
