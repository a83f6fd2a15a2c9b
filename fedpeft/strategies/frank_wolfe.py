"""A mixture of updates that a server with proxy data finds, one update at a time, from the gradient of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedpeft.strategies.base import Context, Update, check

_FAR = 2.0
Gradient: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Mixture:
    """What Frank-Wolfe found.

    Args:
        delta: the mixture, float32.
        shares: of each update in each slot, shape (n, m), at least 0; those of a slot add up to 1.
        gap: the largest <g, x - x_i> at the last point that the gradient was asked for; no mixture's loss is lower by
            more, if the loss is convex.
    """

    delta: Float[Tensor, " d"]
    shares: Float[Tensor, "n m"]
    gap: float


def frank_wolfe(
    updates: Sequence[Update],
    ctx: Context,
    gradient: Gradient,
    *,
    iterations: int = 10,
    step: float = 1.0,
    choose: Literal["update", "slot"] = "update",
) -> Mixture:
    """FW-Merging: the mixture of updates of the least loss on a server's own data.

    Chen, Hu, Luk, Hospedales and Fan, 2025, arXiv 2503.12649. From the weighted mean x, iteration t takes an update s
    down the gradient g of the loss at x, and steps to x + gamma (s - x) with gamma = step 2 / (t + 2), so x stays a
    mixture. Each iteration reads every update once, and the chosen again, and keeps a few vectors of the adapter's
    size, whatever the number of updates; the same inputs give the same bits.

    It differs in this: with m the median distance of updates to x, one further than 2 m off is approached by 2 m gamma
    and no more, and s is the one whose approach leads down most, where the paper takes the least <g, x_i>. That is
    often the longest update, and a step to it leaves the best mixture far behind. The authors' code takes the least
    cosine of g and x_i, summed over tensors, with the first mixture as one update more; its steps are as here, times
    its factor of the task vectors. It shuffles its data with a global generator.

    Args:
        updates: to mix.
        ctx: what they began at.
        gradient: from an adapter (the start plus a delta), float32, shape (d,), to the gradient there.
        iterations: from 1.
        step: in (0, 1].
        choose: one "update" for all slots, or the best for each "slot", as in their layer-wise variant.

    Raises:
        ValueError: an argument is out of range, there is no update, or a gradient is not finite or has another size.
    """
    _check(updates, iterations, step, choose)
    x, shares = _mean(updates, ctx)
    gap, sizes = 0.0, torch.tensor([slot.numel for slot in ctx.space.slots])
    for t in range(iterations):
        start = 0.0 if ctx.start is None else ctx.start
        g = gradient((start + x).float()).detach().double()
        if g.shape != x.shape or not torch.isfinite(g).all():
            raise ValueError(f"gradient must return {tuple(x.shape)} finite numbers, got shape {tuple(g.shape)}")
        slopes, lengths = _ways(updates, ctx, g, x, choose)
        parts = _parts(lengths)
        best = (slopes * parts).argmin(dim=0, keepdim=True)
        gap = -float(slopes.amin(dim=0).sum())
        gamma = (step * 2 / (t + 2) * parts.gather(0, best)[0]).expand(len(sizes))
        chosen = best[0].expand(len(sizes))
        x += torch.repeat_interleave(gamma, sizes) * (_vertex(updates, ctx, chosen) - x)
        shares *= 1 - gamma
        shares[chosen, torch.arange(len(sizes))] += gamma
    return Mixture(x.float(), shares, gap)


def _check(updates: Sequence[Update], iterations: int, step: float, choose: str) -> None:
    if not updates:
        raise ValueError("there is nothing to merge: no update was given")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not 0 < step <= 1:
        raise ValueError(f"step must lie in (0, 1], got {step}")
    if choose not in ("update", "slot"):
        raise ValueError(f"choose must be 'update' or 'slot', got {choose!r}")


def _mean(updates: Sequence[Update], ctx: Context) -> tuple[Float[Tensor, " d"], Float[Tensor, "n m"]]:
    """The weighted mean, and what each update is of it."""
    total, weights = torch.zeros(ctx.space.numel, dtype=torch.float64), []
    for update in updates:
        check([update], ctx)
        total += update.delta.double() * update.weight
        weights.append(update.weight)
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return total / sum(weights), shares[:, None].repeat(1, len(ctx.space.slots))


def _ways(
    updates: Sequence[Update], ctx: Context, g: Float[Tensor, " d"], x: Float[Tensor, " d"], choose: str
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"]]:
    """How much the loss rises on the way to each update, and how long the way is: in all, or in each slot."""
    pieces = list(pairwise(ctx.space.bounds)) if choose == "slot" else [(0, ctx.space.numel)]
    slopes, lengths = torch.zeros(2, len(updates), len(pieces), dtype=torch.float64)
    for i, update in enumerate(updates):
        away = update.delta.double() - x
        for j, (begin, end) in enumerate(pieces):
            slopes[i, j] = torch.dot(g[begin:end], away[begin:end])
            lengths[i, j] = away[begin:end].norm()
    return slopes, lengths


def _parts(lengths: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """What of the way to each update a whole step goes; all of it where most updates lie at x."""
    median = lengths.sort(dim=0).values[len(lengths) // 2]
    return (torch.where(median > 0, _FAR * median, torch.inf) / lengths).clamp(max=1)


def _vertex(updates: Sequence[Update], ctx: Context, chosen: Int64[Tensor, " m"]) -> Float[Tensor, " d"]:
    """Of each slot the update that is chosen for it."""
    vertex = torch.empty(ctx.space.numel, dtype=torch.float64)
    for i in sorted(set(chosen.tolist())):
        delta = updates[i].delta.double()
        for j, (begin, end) in enumerate(pairwise(ctx.space.bounds)):
            if chosen[j] == i:
                vertex[begin:end] = delta[begin:end]
    return vertex
