"""Sign election: each coordinate's sign is voted on, and only those who agree are averaged."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update


@dataclass(frozen=True)
class SignElection(Additive):
    """The elect and merge steps of TIES; its trim step is the client's codec (`Ternary`, or any sparse one).

    Yadav, Tam, Choshen, Raffel and Bansal, 2023, arXiv 2306.01708, section 3: gamma = sgn(sum_k x_k), and the merged
    value is the mean of those x_k whose sign is gamma. With P = sum n_k max(x_k, 0), M = sum n_k max(-x_k, 0) and the
    weights W+ and W- of those who are positive and negative, all of it is a function of four sums, so it streams.
    Weights enter election and merge alike, as in mergekit; PEFT's `ties` elects without weights. A tie, which the
    authors' code gives to the majority of all coordinates, yields 0 here: no majority, no step.

    On ternary updates of one scale the mean over those who agree is +-s wherever anybody voted; the mean over all
    keeps the size of the majority.

    Args:
        elect: "sum" elects by magnitude, "count" by number.
        average: over whom the winning values are averaged: "agreeing" clients (TIES) or "all" clients.
    """

    elect: Literal["sum", "count"] = "sum"
    average: Literal["agreeing", "all"] = "agreeing"

    def __post_init__(self) -> None:
        if self.elect not in ("sum", "count"):
            raise ValueError(f"elect must be 'sum' or 'count', got {self.elect!r}")
        if self.average not in ("agreeing", "all"):
            raise ValueError(f"average must be 'agreeing' or 'all', got {self.average!r}")

    def lift(self, update: Update, ctx: Context) -> Summands:
        """Positive and negative parts, and whose they are."""
        x, n = update.delta.double(), update.weight
        return {
            "plus": x.clamp(min=0).mul_(n),
            "minus": x.clamp(max=0).mul_(-n),
            "weight_plus": (x > 0).double().mul_(n),
            "weight_minus": (x < 0).double().mul_(n),
            "weight": torch.tensor(n, dtype=torch.float64),
        }

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """Elect, then merge."""
        plus, minus, weight_plus, weight_minus = (
            total[name] for name in ("plus", "minus", "weight_plus", "weight_minus")
        )
        lead = plus - minus if self.elect == "sum" else weight_plus - weight_minus
        won = torch.where(lead > 0, plus, torch.where(lead < 0, -minus, 0.0))
        if self.average == "all":
            return (won / total["weight"]).float()
        voters = torch.where(lead > 0, weight_plus, weight_minus).clamp(min=torch.finfo(torch.float64).tiny)
        return (won / voters).float()
