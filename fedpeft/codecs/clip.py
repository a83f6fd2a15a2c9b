"""Bounding the norm of a delta before it is encoded."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Context, Transform
from fedpeft.space import Space


@dataclass(frozen=True)
class Clip(Transform):
    """Scale a delta down to the norm bound C: x * min(1, C / ||x||_2).

    McMahan, Ramage, Talwar and Zhang, 2018, arXiv 1710.06963, section 3 (flat clipping of the whole update).

    >>> from fedpeft.space import Slot
    >>> Clip(norm=1.0).forward(torch.tensor([3.0, 4.0]), Space((Slot("a", (2,), "head"),)), Context())
    tensor([0.6000, 0.8000])

    Args:
        norm: C > 0, of the whole delta.
    """

    norm: float

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf:
            raise ValueError(f"norm must be positive and finite, got {self.norm}")

    def forward(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The clipped delta."""
        length = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        return delta if length <= self.norm else delta * (self.norm / length)
