"""A strategy of your own: name it in a YAML as `strategy: examples.custom_strategy.TrustedMean(cap=100)`."""

from dataclasses import dataclass

import torch

from fedpeft.strategies import Additive, Context, Summands, Update


@dataclass(frozen=True)
class TrustedMean(Additive):
    """A mean in which no site weighs more than `cap` examples, however many it says it has."""

    cap: float

    def lift(self, update: Update, ctx: Context) -> Summands:
        """What is summed over sites."""
        weight = min(update.weight, self.cap)
        return {"sum": weight * update.delta.double(), "weight": torch.tensor(weight, dtype=torch.float64)}

    def finalize(self, total: Summands, ctx: Context) -> torch.Tensor:
        """What the sums become."""
        return (total["sum"] / total["weight"]).float()
