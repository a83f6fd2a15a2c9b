"""The mean over those who have something to say of a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedpeft import kernels
from fedpeft.space import Slot, Space
from fedpeft.strategies.base import Additive, Context, Summands, Update
from fedpeft.strategies.folding import add_weighted, blocks, empty, zeros
from fedpeft.ternary import TernaryDelta


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

    ternary: ClassVar[bool] = True

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, the weight, and the weight in each row of a head that moved."""
        return {
            "sum": update.delta.to(torch.float64, copy=True).mul_(update.weight),
            "weight": torch.tensor(update.weight, dtype=torch.float64),
            "seen": _moved(update, ctx.space).double().mul_(update.weight),
        }

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Add all of them block by block, and ternary ones from their bit planes."""
        if not total:
            rows = sum(slot.shape[0] for slot in _heads(ctx.space))
            total |= {"sum": zeros(ctx.space.numel), "weight": torch.zeros((), dtype=torch.float64)}
            total |= {"seen": zeros(rows)}
        add_weighted(total["sum"], updates, [update.weight for update in updates])
        for update in updates:
            total["weight"] += update.weight
            total["seen"] += _moved(update, ctx.space).double().mul_(update.weight)

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The quotients."""
        merged, begin = empty(ctx.space.numel), 0
        for block, sums in blocks({"sum": total["sum"]}, ctx.space.numel):
            merged[block] = sums["sum"] / total["weight"]
        for slot in _heads(ctx.space):
            rows = slot.shape[0]
            seen = total["seen"][begin : begin + rows].clamp(min=torch.finfo(torch.float64).tiny)
            summed = ctx.space.view(total["sum"], slot.name).reshape(rows, -1)
            ctx.space.view(merged, slot.name).copy_((summed / seen[:, None]).view(slot.shape))
            begin += rows
        return merged


def _moved(update: Update, space: Space) -> Bool[Tensor, " rows"]:
    """Which rows of heads are not all zeros."""
    heads, sent = _heads(space), update.sent
    if not isinstance(sent, TernaryDelta):
        moved = [space.view(sent, slot.name).reshape(slot.shape[0], -1).any(1) for slot in heads]
        return torch.cat([torch.empty(0, dtype=torch.bool), *moved])
    begins = dict(zip((slot.name for slot in space.slots), space.bounds, strict=False))
    rows = [begins[slot.name] + slot.numel // slot.shape[0] * np.arange(slot.shape[0] + 1) for slot in heads]
    edges = np.unique(np.concatenate([sent.bounds, *rows]))
    kept = kernels.kept_by_slot(sent.mask.view(np.uint8)[: -(-sent.numel // 8)], edges)
    kept[sent.scales[np.searchsorted(sent.bounds, edges[:-1], side="right") - 1] == 0] = 0
    before = np.concatenate([[0], np.cumsum(kept)])
    counts = [np.diff(before[np.searchsorted(edges, own)]) for own in rows]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *counts]) > 0)


def _heads(space: Space) -> list[Slot]:
    return [slot for slot in space.slots if slot.role == "head" and slot.shape and slot.numel]
