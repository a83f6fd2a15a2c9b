"""How far a merged adapter's LoRA products are from the mean of the clients' products."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Update, check
from fedpeft.strategies.drawing import Part, stream_of
from fedpeft.strategies.factors import Factors
from fedpeft.strategies.lora import Module, modules


def product_error(
    updates: Sequence[Update],
    merged: Float[Tensor, " d"],
    ctx: Context,
    *,
    probes: int | None = None,
    held: int = 1 << 28,
) -> float:
    """||M - s B' A'||_F / ||M||_F with M = sum_i n_i s B_i A_i / sum_i n_i, over all layers at once.

    It is 0 where a merge is exact, and 1 for a merged adapter that does nothing. No out x in matrix is written.

    Without probes it is exact down to about 1e-8: norms and inner products of products come from r x r matrices, one
    for each pair of clients. As many adapters as fit into `held` bytes stay in memory (float64); where all fit, each
    update is decoded once, else about n^2 / (2 fit) are. Work grows with n^2 r d.

    With probes, M and B' A' are looked at along random orthogonal directions of each layer's input: one pass, work
    n probes d, and float64 memory for `probes` numbers per row of B, whatever n is. Both norms come from the same
    directions, whose squares are unbiased; layers with no more inputs than probes are exact.

    Args:
        updates: what was merged; may decode lazily.
        merged: the delta that was made of them.
        ctx: as it was for the merge.
        probes: how many directions, at least 1; None: exact.
        held: bytes, exact only.

    Returns:
        The error; 0.0 where there is no LoRA product at all, inf where the clients' mean is zero and the merged is not.

    Raises:
        ValueError: there is no update, one has another size, or probes is less than 1.
    """
    if not updates:
        raise ValueError("there is no update to compare the merged adapter with")
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact error, got {probes}")
    wanted = _sum([Update(merged)], ctx)
    missed, size = _exact(updates, wanted, ctx, held) if probes is None else _probed(updates, wanted, ctx, probes)
    if size > 0:
        return math.sqrt(max(missed, 0.0) / size)
    return 0.0 if missed <= 0 else math.inf


def _exact(updates: Sequence[Update], wanted: list[Factors], ctx: Context, held: int) -> tuple[float, float]:
    """||M - B' A'||^2 and ||M||^2."""
    fit = max(1, held // (8 * ctx.space.numel))
    square = cross = total = 0.0
    for begin in range(0, len(updates), fit):
        end = min(begin + fit, len(updates))
        block = [updates[i] for i in range(begin, end)]
        total += sum(update.weight for update in block)
        sums = _sum(block, ctx)
        square += sum(pair.dot(pair) for pair in sums)
        cross += sum(pair.dot(other) for pair, other in zip(sums, wanted, strict=True))
        for i in range(end, len(updates)):
            other = _sum([updates[i]], ctx)
            square += 2 * sum(pair.dot(term) for pair, term in zip(sums, other, strict=True))
    size = square / total**2
    return size - 2 * cross / total + sum(pair.dot(pair) for pair in wanted), size


def _probed(updates: Sequence[Update], wanted: list[Factors], ctx: Context, probes: int) -> tuple[float, float]:
    """Estimates of the same, from one pass."""
    layers = modules(ctx.space)
    looks = [_directions(module, i, probes, ctx) for i, module in enumerate(layers)]
    seen = [look.new_zeros(module.shape[0], look.shape[1]) for module, look in zip(layers, looks, strict=True)]
    total = 0.0
    for update in updates:
        for sight, look, pair in zip(seen, looks, _sum([update], ctx), strict=True):
            sight.addmm_(pair.b, pair.a @ look, alpha=pair.scaling)
        total += update.weight
    missed = size = 0.0
    for sight, look, pair in zip(seen, looks, wanted, strict=True):
        sight.div_(total)
        size += float(sight.square().sum())
        missed += float((sight - pair.scaling * (pair.b @ (pair.a @ look))).square().sum())
    return missed, size


def _sum(updates: Sequence[Update], ctx: Context) -> list[Factors]:
    """For every layer, factors of sum_i n_i s B_i A_i: those of the clients beside each other."""
    check(updates, ctx)
    pairs = [(update.weight, ctx.adapter(update)) for update in updates]
    found = []
    for module in modules(ctx.space):
        terms = [(weight, module.factors(ctx.space, adapter)) for weight, adapter in pairs]
        b = torch.cat([term.b * weight for weight, term in terms], 1)
        found.append(Factors(b, torch.cat([term.a for _, term in terms]), module.scaling))
    return found


def _directions(module: Module, index: int, probes: int, ctx: Context) -> Float[Tensor, "in k"]:
    """Random orthogonal columns whose mean outer product is the identity; all of it where probes suffice."""
    width = module.shape[1]
    if probes >= width:
        return torch.eye(width, dtype=torch.float64)
    drawn = stream_of(ctx, Part.PROBES, index).normal(width * probes)
    q, r = torch.linalg.qr(torch.from_numpy(drawn).view(width, probes))
    directions: Tensor = q * r.diagonal().sign() * math.sqrt(width / probes)
    return directions
