"""A strategy of your own: name it in a YAML as `strategy: examples.custom_strategy.TrustedMean(cap=100)`."""

from dataclasses import dataclass

import torch

from fedpeft.space import Space
from fedpeft.strategies import Strategy, Summands, Update


@dataclass(frozen=True)
class TrustedMean(Strategy):
    """A mean in which no site weighs more than `cap` examples, however many it says it has."""

    cap: float

    def lift(self, update: Update, space: Space) -> Summands:
        """What is summed over sites."""
        weight = min(update.weight, self.cap)
        return {"sum": weight * update.delta.double(), "weight": torch.tensor(weight, dtype=torch.float64)}

    def finalize(self, total: Summands, space: Space) -> torch.Tensor:
        """What the sums become."""
        return (total["sum"] / total["weight"]).float()
