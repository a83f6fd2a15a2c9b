"""Bounding the norm of a delta before it is encoded."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import Context, Transform, finite
from fedpeft.kernels import device
from fedpeft.space import Space


@dataclass(frozen=True)
class Clip(Transform):
    """Scale a delta down to the norm bound C: x * min(1, C / ||x||_2).

    McMahan, Ramage, Talwar and Zhang, 2018, arXiv 1710.06963, section 3 (flat clipping of the whole update).

    What the next step is given is bounded; what a server decodes is not, where the codec lengthens. Those that are
    unbiased do, since they make up for what they drop or round: of 8,192 normal numbers in two slots, clipped to 1,
    `SRHT(density=0.05, scale="unbiased")` makes a delta of norm 4.7, `RandomMask(0.1, Identity())` 3.2,
    `Ternary(density=0.05, scale="unbiased")` 1.9, `Uniform(bits=2, stochastic=True)` 1.8 and `Rotated(bits=1)` 1.3.
    With scale="mean" or "norm" codecs do not lengthen, but for the rounding of what they send. A bound on what is
    merged, whatever came, is for the server to set: the strategy `ClipNorm`.

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
        """The clipped delta; on a GPU where the delta lies there, to the same bits."""
        if device.holds(delta):
            clipped = device.finite(delta)
            factor = device.of_square(clipped, self._factor)
        else:
            x = finite(delta)
            clipped = torch.from_numpy(x)
            factor = np.float32(self._factor(kernels.block_squares(x, np.array([0, x.size])))[0])
        return clipped if factor == 1 else clipped * float(factor)

    def _factor(self, square: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.minimum(1, self.norm / np.sqrt(square))
