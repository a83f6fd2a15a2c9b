"""TIES: trim small values, elect each coordinate's sign, and merge only those who agree with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update
from fedpeft.strategies.folding import Ballot, add_by_sign, blocks, empty, zeros
from fedpeft.strategies.planes import Trim
from fedpeft.strategies.votes import lead

_PARTS = ("plus", "minus", "weight_plus", "weight_minus")
_CHOICES = {
    "trim": ("slot", "global", "none"),
    "elect": ("sum", "count"),
    "aggregate": ("mean", "sum", "margin"),
    "weights": ("mergekit", "reference", "peft"),
}


@dataclass(frozen=True)
class TIES(Additive):
    """Keep each client's largest values, elect a sign by majority, average those who have it.

    Yadav, Tam, Choshen, Raffel and Bansal, 2023, arXiv 2306.01708, section 3: trim x_k to its largest magnitudes,
    gamma = sgn(sum_k x_k), and the merged value is the mean of those x_k whose sign is gamma. With
    P = sum_k n_k max(x_k, 0), M = sum_k n_k max(-x_k, 0) and the weights W+ and W- of those who are positive and
    negative, all of it is a function of four sums, so it streams, and a tree of sums is the flat merge to the bit. A
    tree that merges what others have merged is another rule.

    Four rules go by this name; they differ in signs and in length:

    * the authors' code: `TIES(trim="global", weights="reference")`. It keeps one value more than its density says;
    * PEFT's `ties`: `TIES(weights="peft")`, where k is rounded down, and a slot can be trimmed to nothing;
    * mergekit's `ties`: `TIES(weights="mergekit")`, with its `normalize` (without: `aggregate="sum"`), k rounded down;
    * FusionBench: `TIES(trim="global", aggregate="sum", weights="reference", scale=0.3)`.

    A tie makes no step here: no majority, no direction; and sides that differ by less than 1e-12 of both are tied, so
    that weights of .1, .2 and .3 elect what 1, 2 and 3 do. PEFT and mergekit give it to the positive side; the authors'
    code and FusionBench to the side that more of all coordinates are on.

    One threshold for the whole adapter starves what is small: a LoRA's B, which began at zero, beside its A. Trimming
    is the client's own business and can be done by its codec (`Ternary`, or any sparse one): then `trim="none"`. An
    update whose slots have one magnitude each, as `Ternary` makes, passes a trim by slot as it is: all of it ties.

    On ternary updates of one scale the mean over those who agree is +-s wherever anybody voted: the size of the
    majority is lost. "margin" keeps it.

    >>> from fedpeft.space import Slot, Space
    >>> rows = torch.tensor([[4.0, 1.0, -1.0], [2.0, -3.0, -1.0], [-1.0, 1.0, 0.0]])
    >>> TIES(trim="none").merge([Update(row) for row in rows], Context(Space((Slot("a", (3,), "head"),))))
    tensor([ 3., -3., -1.])

    Args:
        density: fraction that a trim keeps, in (0, 1]; at least one value, and all that tie with the smallest kept.
        trim: "slot" keeps that much of each slot, "global" of the whole delta, "none" keeps all.
        elect: "sum" elects by magnitude, "count" by number.
        aggregate: what is made of the values that agree: their "mean"; their "sum", which grows with the number of
            clients; or "margin", their sum over the weight of all clients, those who disagree too.
        weights: "mergekit": n_k counts in election and merge alike; "reference": every n_k is 1; "peft": the election
            has no weights, values are multiplied by n_k, and a mean divides by the number of clients. A merge by
            "peft" is thus as many times longer as the weights are larger than 1: give it weights around 1.
        scale: the merged delta is multiplied by it (the authors' lambda).
    """

    density: float = 0.2
    trim: Literal["slot", "global", "none"] = "slot"
    elect: Literal["sum", "count"] = "sum"
    aggregate: Literal["mean", "sum", "margin"] = "mean"
    weights: Literal["mergekit", "reference", "peft"] = "mergekit"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                *most, last = map(repr, choices)
                raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {getattr(self, name)!r}")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")

    @property
    def ternary(self) -> bool:  # type: ignore[override]
        """Not where values are elected without weights and merged with them, which takes a fifth sum."""
        return not self._leads

    @property
    def _leads(self) -> bool:
        return self.weights == "peft" and self.elect == "sum"

    @property
    def offline(self) -> str:
        """PEFT's weights are factors, and a run's are numbers of examples."""
        if self.weights != "peft":
            return ""
        return "weights='peft' multiplies each update by its weight, which is a number of examples"

    def lift(self, update: Update, ctx: Context) -> Summands:
        """Positive and negative parts of what a trim leaves, and whose they are."""
        x = torch.from_numpy(self._trimmed(update.delta.numpy(), ctx)).double()
        value = 1.0 if self.weights == "reference" else update.weight
        vote = update.weight if self.weights == "mergekit" else 1.0
        lifted = {
            "plus": x.clamp(min=0).mul_(value),
            "minus": x.clamp(max=0).mul_(-value),
            "weight_plus": (x > 0).double().mul_(vote),
            "weight_minus": (x < 0).double().mul_(vote),
            "weight": torch.tensor(vote, dtype=torch.float64),
        }
        if self._leads:
            lifted["lead"] = x
        return lifted

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Add all of them block by block, and ternary ones from their bit planes."""
        if self._leads:
            super().accumulate(total, updates, ctx)
            return
        if not total:
            total |= {name: zeros(ctx.space.numel) for name in _PARTS}
            total["weight"] = torch.zeros((), dtype=torch.float64)
        weights = [update.weight for update in updates]
        ones = [1.0] * len(updates)
        values = ones if self.weights == "reference" else weights
        votes = weights if self.weights == "mergekit" else ones
        add_by_sign(Ballot(*(total[name] for name in _PARTS)), updates, values, votes, self._trim(ctx))
        for vote in votes:
            total["weight"] += vote

    def _trim(self, ctx: Context) -> Trim | None:
        if self.trim == "none" or self.density == 1:
            return None
        return Trim(self.density, ctx.space.bounds if self.trim == "slot" else (0, ctx.space.numel))

    def _trimmed(self, x: NDArray[np.float32], ctx: Context) -> NDArray[np.float32]:
        """The largest magnitudes, and zeros elsewhere; a delta that is not trimmed is given back as it is."""
        trim = self._trim(ctx)
        return x if trim is None else trim.of_dense(x)

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """Elect, then merge."""
        merged = empty(ctx.space.numel)
        for block, sums in blocks(total, ctx.space.numel):
            merged[block] = self._merged(sums)
        return merged

    def _merged(self, total: Summands) -> Float[Tensor, " b"]:
        plus, minus, weight_plus, weight_minus = (total[name] for name in _PARTS)
        if self._leads:
            elected = total["lead"]
        else:
            elected = lead(weight_plus, weight_minus) if self.elect == "count" else lead(plus, minus)
        ahead = elected > 0
        won = torch.where(ahead, plus, minus).mul_(elected.sign()).mul_(self.scale)
        if self.aggregate == "margin":
            won /= total["weight"]
        elif self.aggregate == "mean":
            won /= torch.where(ahead, weight_plus, weight_minus).clamp_(min=torch.finfo(torch.float64).tiny)
        return won
