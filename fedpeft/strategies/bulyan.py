"""Bulyan: Krum chooses whom to believe, and then each coordinate whom it believes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Strategy, Update
from fedpeft.strategies.columns import columns
from fedpeft.strategies.krum import all_of, scores, squared_distances


@dataclass(frozen=True)
class Bulyan(Strategy):
    """Of theta updates that Krum selects one after another, in each coordinate the mean of those nearest the median.

    El Mhamdi, Guerraoui and Rouault, 2018, arXiv 1802.07927, section 4: theta = n - 2 f selections, each of the best
    by Krum among those that are left (of equals, as where too few are left to compare, the best among all), then the
    mean of the beta = theta - 2 f values closest to the median of the selected. It needs n >= 4 f + 3, f being
    `byzantine`. An update that Krum accepts although one coordinate of it is far out thereby loses that coordinate.
    The authors' later code selects n - 2 f - 2 times, each time a mean of several; this is the paper's. Weights, which
    sites report of themselves, count for nothing.

    Memory: all updates as they were sent (d / 4 bytes each where they are ternary, else 4 d), and blocks of 8 MiB.

    Args:
        byzantine: how many of the updates may be hostile, >= 0.
    """

    ternary: ClassVar[bool] = True

    byzantine: int

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise ValueError(f"byzantine must be at least 0, got {self.byzantine}")

    @property
    def least(self) -> int:
        """4 f + 3."""
        return 4 * self.byzantine + 3

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Select, then merge coordinate by coordinate."""
        held = all_of(self, updates, ctx)
        chosen = self._select(squared_distances(held, ctx))
        merged = torch.empty(ctx.space.numel)
        for where, block in columns([held[i] for i in chosen], ctx):
            merged[where] = _nearest_to_median(block, len(chosen) - 2 * self.byzantine)
        return merged

    def _select(self, squared: Float[Tensor, "n n"]) -> list[int]:
        at_first = scores(squared, self.byzantine).tolist()
        left = list(range(len(squared)))
        chosen: list[int] = []
        while len(chosen) < len(squared) - 2 * self.byzantine:
            now = scores(squared[left][:, left], self.byzantine).tolist()
            best = min(range(len(left)), key=lambda i: (now[i], at_first[left[i]]))
            chosen.append(left.pop(best))
        return sorted(chosen)


def _nearest_to_median(block: Float[Tensor, "n b"], keep: int) -> Float[Tensor, " b"]:
    """The mean of the `keep` values closest to the median: neighbours in order; of two equal choices, of both."""
    ordered = block.sort(dim=0).values.double()
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    spans = torch.stack(
        [torch.maximum(median - ordered[i], ordered[i + keep - 1] - median) for i in range(n - keep + 1)]
    )
    first, last = spans.argmin(dim=0), len(spans) - 1 - spans.flip(0).argmin(dim=0)
    low, high = (ordered.gather(0, begin + torch.arange(keep)[:, None]).mean(dim=0) for begin in (first, last))
    return ((low + high) / 2).float()
