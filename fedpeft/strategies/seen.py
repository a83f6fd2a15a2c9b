"""The mean over those who have something to say of a row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Slot, Space
from fedpeft.strategies.base import Additive, Context, Summands, Update


@dataclass(frozen=True)
class SeenMean(Additive):
    """A weighted mean in which a row of a head counts for the clients that moved it: sum n_k x_k / sum n_k [x_k != 0].

    A site that trains with `training.labels: own` leaves the rows of classes that it does not have as they were. The
    mean over all would shrink what the others learned of those classes by the share of sites that have them; here each
    row has a divisor of its own, which is a sum too. Slots that are no head have a single one, the sum of weights, as
    in the mean. A sparse codec sends a row of which it keeps something: what it keeps back counts as not seen in that
    round. That a row moved is all that is told of a site's classes, and every update tells it anyway.

    >>> ctx = Context(Space((Slot("score.weight", (2, 2), "head"),)))
    >>> SeenMean().merge([Update(torch.tensor([1.0, 0, 0, 0])), Update(torch.tensor([3.0, 4, 0, 2]))], ctx)
    tensor([2., 2., 0., 2.])
    """

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, the weight, and the weight in each row of a head that moved."""
        x, n = update.delta.double(), update.weight
        moved = [ctx.space.view(x, slot.name).reshape(slot.shape[0], -1).any(1) for slot in _heads(ctx.space)]
        return {
            "sum": x * n,
            "weight": torch.tensor(n, dtype=torch.float64),
            "seen": torch.cat([torch.empty(0, dtype=torch.bool), *moved]).double() * n,
        }

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The quotients."""
        merged, begin = total["sum"] / total["weight"], 0
        for slot in _heads(ctx.space):
            rows = slot.shape[0]
            seen = total["seen"][begin : begin + rows].clamp(min=torch.finfo(torch.float64).tiny)
            summed = ctx.space.view(total["sum"], slot.name).reshape(rows, -1)
            ctx.space.view(merged, slot.name).copy_((summed / seen[:, None]).view(slot.shape))
            begin += rows
        return merged.float()


def _heads(space: Space) -> list[Slot]:
    return [slot for slot in space.slots if slot.role == "head" and slot.shape and slot.numel]
