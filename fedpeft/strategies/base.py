"""What a strategy is: a lift, a sum and a finish."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space

Summands: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Update:
    """What one client brings to the fold of a round.

    Args:
        delta: shape (d,), float32.
        weight: > 0; usually the number of examples trained on.
    """

    delta: Float[Tensor, " d"]
    weight: float = 1.0


class Strategy(ABC):
    """A rule that makes one delta of many: `finalize` of the sum of every client's `lift`.

    Subclasses are frozen dataclasses. Because the middle is only `+`, the same rule streams in memory that does not
    grow with the number of clients, merges up a tree, and can be summed under masks.
    """

    additive: ClassVar[bool] = True

    @abstractmethod
    def lift(self, update: Update, space: Space) -> Summands:
        """The named float64 tensors that are summed over clients; shapes depend on the space alone."""

    @abstractmethod
    def finalize(self, total: Summands, space: Space) -> Float[Tensor, " d"]:
        """The merged delta, float32, from the sums."""


@dataclass
class Fold:
    """A strategy's running total: constant memory, however many clients.

    Float sums depend on their order in the last bit, so a caller that promises bit-identity accumulates in node
    order (`fedpeft.federation.server` does).
    """

    strategy: Strategy
    space: Space
    total: dict[str, Tensor] | None = None

    def accumulate(self, update: Update) -> None:
        """Add one client.

        Raises:
            ValueError: the delta has another size, or the weight is not positive and finite.
        """
        if update.delta.shape != (self.space.numel,):
            raise ValueError(f"expected a delta of shape ({self.space.numel},), got {tuple(update.delta.shape)}")
        if not 0 < update.weight < math.inf:
            raise ValueError(f"a weight must be positive and finite, got {update.weight}")
        self._add(self.strategy.lift(update, self.space))

    def merge(self, other: "Fold") -> None:
        """Add the total of another fold: one branch of a tree.

        Raises:
            ValueError: the other fold is of another strategy or space.
        """
        if (other.strategy, other.space) != (self.strategy, self.space):
            raise ValueError(f"cannot add a total of {other.strategy} to one of {self.strategy}, or of another space")
        if other.total is not None:
            self._add(other.total)

    def finalize(self) -> Float[Tensor, " d"]:
        """The merged delta.

        Raises:
            ValueError: nobody contributed.
        """
        if self.total is None:
            raise ValueError("there is nothing to merge: no client contributed")
        return self.strategy.finalize(self.total, self.space)

    def _add(self, summands: Summands) -> None:
        if self.total is None:
            self.total = {name: tensor.to(torch.float64, copy=True) for name, tensor in summands.items()}
        else:
            for name, tensor in summands.items():
                self.total[name] += tensor
