"""Federated rank learning: clients vote with the order of their parameters, and the order that wins is the adapter."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedpeft import ranking
from fedpeft.strategies.base import Additive, Context, Summands, Update


@dataclass(frozen=True)
class RankVote(Additive):
    """Borda's count of the clients' rankings: the least sum of ranks in a slot is ranked least, and so on.

    FRL (Mozaffari, Shejwalkar and Houmansadr, 2023, USENIX Security, arXiv 2110.04350, algorithm 1): the parameters
    are scores of an adapter of fixed random weights, of which `training.supermask` uses those with the highest scores.
    Here the ranking of a client is read off start + delta, slot by slot; equal scores, and equal sums, are ranked in
    their order in the slot. The result is the score of each rank, (2 rank + 1) / size - 1, where the authors' code puts
    back the sorted initial scores. A client has one vote: weights do not count. So that the scores arrive as they are,
    the server's optimizer is `SGD(lr=1.0)`, and updates and broadcasts keep order: `Ranks()` and `Identity()` do.

    It bounds what one client can do to a coordinate, and promises no more: few clients that agree on an order decide
    the ranks on which the others are split. VEM (Vulnerable Edge Manipulation, 2025, arXiv 2503.08976) finds those and
    reverses them; its reported impact on FRL is 53 %. Nor does a ranking hide the data that it was learnt from.

    >>> from fedpeft.space import Slot, Space
    >>> import torch
    >>> rows = [[1.0, 2.0, 3.0], [9.0, 7.0, 8.0], [5.0, 0.0, 6.0]]
    >>> RankVote().merge([Update(torch.tensor(x)) for x in rows], Context(Space((Slot("a", (3,), "head"),)))) * 3
    tensor([ 0., -2.,  2.])
    """

    anchored: ClassVar[bool] = True
    settles: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The ranks of the client's scores: whole numbers, so that sums of them are exact in any order."""
        return {"ranks": ranking.ranks(ctx.adapter(update), ctx.space)}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """What leads from the start to the scores of the summed ranks."""
        return ctx.delta(ranking.scores(total["ranks"], ctx.space))
