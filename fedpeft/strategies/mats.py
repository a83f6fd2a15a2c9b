"""A linear system whose matrix only the clients know: solved by sending them vectors and adding up their products."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update
from fedpeft.strategies.statistics import gram_slots, statistic_space


@dataclass(frozen=True)
class MaTS(Additive):
    """Matching models in their task subspaces: (sum_k n_k C_k) x = sum_k n_k C_k x_k by conjugate gradients.

    Tam, Bansal and Raffel, 2024, arXiv 2312.04339. C_k says in which directions site k minds a change: its Gram, for
    each B of a LoRA, or its diagonal Fisher information. A pass adds up the products n_k C_k v of one vector v, so the
    matrix need not be of a form whose sum is small. The iteration begins at the weighted mean and moves first where
    clients mind most, so where little is known, or after few iterations, the mean stands. Run to the end it is Fisher
    merging, and RegMean without its shrinkage.

    "kronecker" is the Fisher information of each B in factors: the authors' K-FAC has E[z z^T] of the inputs z times
    E[g g^T] of the gradients g at the outputs, out x out numbers, more than B's own. Here the second factor is its
    diagonal, which the statistics there are tell: C V = diag(f) V G / tr G for f the sums of rows of the diagonal
    Fisher information and G the Gram, so that a change of what z does together counts once.

    Passes: one for the mean, one for the residual there, one for each iteration. Memory: four vectors of the adapter's
    size in float64 on the server and the product of one client, whatever their number. Each pass after the first uses
    the statistics alone, but updates that are decoded when they are read are decoded in every pass. The authors' code
    sums the matrices first and calls SciPy's solver; here, as there, every slot has step lengths of its own. All sites
    begin at one adapter, so the rule on deltas is the rule on adapters.

    Args:
        iterations: of conjugate gradients, from 1.
        metric: C_k is "fisher" everywhere; or "gram" of each B, with the weighted mean elsewhere; or "both", the Gram
            of each B and Fisher elsewhere; or "kronecker", the factors of each B and Fisher elsewhere.
    """

    iterations: int = 20
    metric: Literal["fisher", "gram", "both", "kronecker"] = "fisher"

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= 10_000:
            raise ValueError(f"iterations must lie in [1, 10000], got {self.iterations}")
        if self.metric not in ("fisher", "gram", "both", "kronecker"):
            raise ValueError(f"metric must be 'fisher', 'gram', 'both' or 'kronecker', got {self.metric!r}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The statistics that the metric is made of."""
        return frozenset({"fisher", "gram"} if self.metric in ("both", "kronecker") else {self.metric})

    @property
    def passes(self) -> int:
        """The mean, the residual there, and the iterations."""
        return self.iterations + 2

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The weighted delta, the weight, and the product with the delta; then the product with what is told."""
        if "x" in ctx.told:
            return {"product": self._product(update, ctx.told["direction"], ctx.space)}
        delta, weight = update.delta.double(), torch.tensor(update.weight, dtype=torch.float64)
        return {"sum": delta * weight, "weight": weight, "product": self._product(update, delta, ctx.space)}

    def _product(self, update: Update, vector: Float[Tensor, " d"], space: Space) -> Float[Tensor, " d"]:
        """n_k C_k v."""
        product = vector * update.weight
        if "fisher" in self.needs:
            product *= update.statistics["fisher"]
        if "gram" in self.needs:
            own = statistic_space("gram", space)
            for slot in gram_slots(space):
                gram = own.view(update.statistics["gram"], slot.name).double()
                # No Gram that a server lets pass is then singular, or worse.
                known = (gram + gram.T) / 2 + 2.0**-20 * gram.trace() * torch.eye(len(gram), dtype=torch.float64)
                minded = space.view(vector, slot.name) @ known * update.weight
                if self.metric == "kronecker":
                    fisher = space.view(update.statistics["fisher"], slot.name).double()
                    minded *= fisher.sum(1, keepdim=True) / (known.trace() or 1.0)
                space.view(product, slot.name).copy_(minded)
        return product

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """One step of conjugate gradients; the delta after the last."""
        told, left = ctx.told, torch.tensor(float(self.iterations), dtype=torch.float64)
        if "x" not in told:
            mean = total["sum"] / total["weight"]
            return Broadcast({"x": mean, "direction": mean, "right": total["product"]})
        if "right" in told:
            residual = told["right"] - total["product"]
            return Broadcast({"x": told["x"], "direction": residual, "residual": residual, "left": left})
        space, direction, residual = ctx.space, told["direction"], told["residual"]
        size = _dots(residual, residual, space)
        step = _spread(_quotient(size, _dots(direction, total["product"], space)), space)
        x = told["x"] + step * direction
        if told["left"] <= 1:
            return x.float()
        residual = residual - step * total["product"]
        turn = _spread(_quotient(_dots(residual, residual, space), size), space)
        direction = residual + turn * direction
        return Broadcast({"x": x, "direction": direction, "residual": residual, "left": told["left"] - 1})


def _dots(a: Float[Tensor, " d"], b: Float[Tensor, " d"], space: Space) -> Float[Tensor, " m"]:
    """The inner product of each slot."""
    pairs = zip(space.bounds, space.bounds[1:], strict=False)
    return torch.stack([torch.dot(a[begin:end], b[begin:end]) for begin, end in pairs])


def _quotient(a: Float[Tensor, " m"], b: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """0 where nothing is left to divide by."""
    return torch.where(b > 0, a / b, 0.0)


def _spread(numbers: Float[Tensor, " m"], space: Space) -> Float[Tensor, " d"]:
    """Each slot's number at each of its coordinates."""
    return torch.repeat_interleave(numbers, torch.tensor([slot.numel for slot in space.slots]))
