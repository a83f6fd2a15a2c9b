"""Ranges of one size as the rows of a matrix, so that one operation works on all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

MOST = 1 << 22  # numbers of ranges that are worked on at once, which bounds the memory for what is made of them


@dataclass(frozen=True, eq=False)
class Rows:
    """Some ranges of a vector that are of one size.

    Args:
        which: their numbers, int64[m], rising.
        starts: where each begins, int64[m].
        size: of each, at least 1.
    """

    which: NDArray[np.int64]
    starts: NDArray[np.int64]
    size: int

    @property
    def _adjacent(self) -> bool:
        return int(self.starts[-1] - self.starts[0]) == (self.starts.size - 1) * self.size

    def _places(self, device: torch.device) -> Tensor:
        starts = torch.from_numpy(self.starts).to(device)
        return starts[:, None] + torch.arange(self.size, device=device)

    def of(self, x: Shaped[Tensor, " d"]) -> Shaped[Tensor, "m n"]:
        """The ranges of a contiguous vector: a view where they lie side by side, else a copy."""
        if self._adjacent:
            return x[self.starts[0] : self.starts[-1] + self.size].view(-1, self.size)
        return x[self._places(x.device)]

    def put(self, rows: Shaped[Tensor, "m n"], x: Shaped[Tensor, " d"]) -> None:
        """Write the ranges of a contiguous vector."""
        if self._adjacent:
            x[self.starts[0] : self.starts[-1] + self.size].view(-1, self.size).copy_(rows)
        else:
            x[self._places(x.device)] = rows

    def each(self, values: NDArray[Any], device: torch.device) -> Shaped[Tensor, "m 1"]:
        """The entries of these ranges in an array that has one for each range, as a column."""
        return torch.from_numpy(values[self.which]).to(device)[:, None]


def equal_rows(edges: NDArray[np.int64]) -> Iterator[Rows]:
    """All ranges that are not empty, gathered by their size.

    Args:
        edges: int64[m + 1], rising from 0; range j is `x[edges[j]:edges[j + 1]]`.
    """
    sizes = np.diff(edges)
    for size in np.unique(sizes[sizes > 0]).tolist():
        every = np.flatnonzero(sizes == size)
        together = max(1, MOST // size)
        for first in range(0, every.size, together):
            which = every[first : first + together]
            yield Rows(which, edges[which], size)
