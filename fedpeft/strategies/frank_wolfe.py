"""A mixture of updates that a server with proxy data finds, one update at a time, from the gradient of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Update, check

Gradient: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Mixture:
    """What Frank-Wolfe found.

    Args:
        delta: the mixture, float32.
        shares: of each update in each slot, shape (n, m), at least 0; those of a slot add up to 1.
        gap: <g, x - s> at the last point that the gradient was asked for; no mixture's loss is lower by more, if the
            loss is convex.
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

    Chen, Hu, Luk, Hospedales and Fan, 2025, arXiv 2503.12649. From the weighted mean x, iteration t takes
    the update s = argmin_i <g, x_i> by the gradient g of the loss at x, and steps to x + gamma (s - x) with
    gamma = step 2 / (t + 2), so x stays a mixture. Each iteration reads every update once and keeps four vectors of the
    adapter's size, whatever the number of updates; the same inputs give the same bits.

    It differs from the authors' code in these: that ranks updates by a sum of cosines over tensors, adds the chosen
    one instead of mixing it in, and shuffles its data with a global generator.

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
    gap = 0.0
    for t in range(iterations):
        start = 0.0 if ctx.start is None else ctx.start
        g = gradient((start + x).float()).detach().double()
        if g.shape != x.shape or not torch.isfinite(g).all():
            raise ValueError(f"gradient must return {tuple(x.shape)} finite numbers, got shape {tuple(g.shape)}")
        vertex, chosen = _lowest(updates, ctx, g, choose)
        gap = float(torch.dot(g, x - vertex))
        gamma = step * 2 / (t + 2)
        x += gamma * (vertex - x)
        shares *= 1 - gamma
        shares[chosen, torch.arange(len(chosen))] += gamma
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


def _lowest(
    updates: Sequence[Update], ctx: Context, g: Float[Tensor, " d"], choose: str
) -> tuple[Float[Tensor, " d"], Tensor]:
    """The corner of all mixtures that lies furthest down the gradient, and whose update it is in each slot."""
    slots = list(pairwise(ctx.space.bounds))
    pieces = slots if choose == "slot" else [(0, ctx.space.numel)]
    vertex = torch.zeros_like(g)
    least, chosen = [float("inf")] * len(pieces), [0] * len(pieces)
    for i, update in enumerate(updates):
        delta = update.delta.double()
        for j, (begin, end) in enumerate(pieces):
            product = float(torch.dot(g[begin:end], delta[begin:end]))
            if product < least[j]:
                least[j], chosen[j] = product, i
                vertex[begin:end] = delta[begin:end]
    return vertex, torch.tensor(chosen if choose == "slot" else chosen * len(slots))
