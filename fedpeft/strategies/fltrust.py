"""FLTrust: each update counts for as much as it points where the server's own does."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update


@dataclass(frozen=True)
class FLTrust(Additive):
    """sum_k t_k (||g|| / ||x_k||) x_k / sum_k t_k, with t_k = max(0, cos(x_k, g)) and the trusted delta g.

    Cao, Fang, Liu and Gong, 2021, arXiv 2012.13995, equations 2 to 4. g is what the server has trained from the same
    adapter, on a small clean data set of its own: no strategy can make it, so it is given as `told["root"]` of the
    context, float64 or float32 of shape (d,), and nothing is merged without it. Where no update points with g, the
    delta is 0; where g is 0, too. Weights, which sites report of themselves, count for nothing.

    In a run g is the update of the node that the experiment names as `root`, a site of the server's own operator. The
    strategy then stands by itself: inside another one it is for merging adapters at hand.
    """

    rooted: ClassVar[bool] = True

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The delta at the length of the trusted one, times the trust in it; and the trust.

        Raises:
            ValueError: the context has no trusted delta, or one of another size.
        """
        root = _root(ctx)
        x = update.delta.double()
        norm, length = float(x.norm()), float(root.norm())
        trust = max(0.0, float((x / norm) @ (root / length))) if norm and length else 0.0
        return {"sum": x * (trust * length / norm if norm else 0.0), "trust": torch.tensor(trust, dtype=torch.float64)}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The mean by trust."""
        trust = total["trust"].clamp(min=torch.finfo(torch.float64).tiny)
        return (total["sum"] / trust).float()


def _root(ctx: Context) -> Float[Tensor, " d"]:
    root = ctx.told.get("root")
    if root is None:
        raise ValueError(
            "FLTrust needs a trusted delta as `told['root']` of the context, got none; train one, and give it"
        )
    if root.shape != (ctx.space.numel,):
        raise ValueError(f"told['root']: expected a delta of shape ({ctx.space.numel},), got {tuple(root.shape)}")
    return root.double()
