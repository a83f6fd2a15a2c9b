"""Which coordinates are worth sending: clients approve of their largest ones, and the most approved stay."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.space import Space
from fedpeft.strategies.base import Context, Update
from fedpeft.strategies.voted import Voted


@dataclass(frozen=True)
class Approval(Voted):
    """The strategy inside, then of each slot only the coordinates that most clients approve of.

    Approval voting (Brams and Fishburn, 1978, doi 10.2307/1955105): a client approves of as many coordinates of a slot
    as may stay, the largest of its update, and never of a zero; the sums of the votes elect, whatever the weights. Of
    equally many votes the larger merged one wins, and then the earlier. The rest of the merged delta becomes zero.

    So the step tells which coordinates won, and `PublicSupport(density, elect="last")` sends just those in the next
    round, with a drawn share of others: with keep = density (1 - explore) the voters elect all that it does not draw.
    A vote is as honest as who casts it: each counts once, so a client moves a coordinate's tally by one however large
    its update is, and clients that agree can keep coordinates alive.

    >>> from fedpeft.space import Slot, Space
    >>> from fedpeft.strategies.mean import Mean
    >>> ctx = Context(Space((Slot("a", (4,), "head"),)))
    >>> rows = [1.0, 0.0, 0.0, 0.5], [0.0, 0.0, 9.0, 0.5], [0.0, 0.25, 0.0, 0.5]
    >>> Approval(Mean(), keep=0.5).merge([Update(torch.tensor(row)) for row in rows], ctx)
    tensor([0.0000, 0.0000, 3.0000, 0.5000])

    Args:
        strategy: merges the updates.
        keep: share of each slot that stays, in (0, 1]; at least one coordinate does.
    """

    keep: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}")

    def votes(self, update: Update, ctx: Context) -> Float[Tensor, " d"]:
        """One for each of a slot's largest coordinates."""
        x = update.delta.numpy()
        mask, _, _ = kernels.keep_largest(x, np.array(ctx.space.bounds), self._seats(ctx.space))
        approved = np.unpackbits(mask, count=x.size, bitorder="little") & (x != 0)
        return torch.from_numpy(approved.astype(np.float64))

    def after(self, merged: Float[Tensor, " d"], votes: Float[Tensor, " d"], ctx: Context) -> Float[Tensor, " d"]:
        """Zeros where a coordinate lost."""
        out, tally = torch.zeros_like(merged), votes.numpy()
        for (begin, end), seats in zip(pairwise(ctx.space.bounds), self._seats(ctx.space).tolist(), strict=True):
            won = torch.from_numpy(begin + _elected(tally[begin:end], merged[begin:end].numpy(), seats))
            out[won] = merged[won]
        return out

    def _seats(self, space: Space) -> NDArray[np.int64]:
        return np.array([min(slot.numel, max(1, round(self.keep * slot.numel))) for slot in space.slots], np.int64)


def _elected(votes: NDArray[np.float64], merged: NDArray[np.float32], seats: int) -> NDArray[np.int64]:
    """Places of those with most votes, of equally many the larger, and then the first."""
    standing = np.flatnonzero(votes)
    if standing.size <= seats:
        return standing
    least = np.partition(votes[standing], -seats)[-seats]
    tied = standing[votes[standing] == least]
    order = np.argsort(-np.abs(merged[tied]), kind="stable")
    sure = standing[votes[standing] > least]
    return np.concatenate([sure, tied[order[: seats - sure.size]]])
