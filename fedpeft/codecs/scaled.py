"""Codes that stand for points times the scale of their block."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import LARGEST
from fedpeft.errors import Defect, PayloadError


def longest_step(most: int | float) -> float:
    """A millionth less than the step of which `most` are the largest float32: rounding takes no sent one beyond it."""
    return LARGEST * (1 - 1e-6) / most


def scaled(
    codes: NDArray[np.uint8], edges: NDArray[np.int64], points: NDArray[np.float32], scales: NDArray[np.float32]
) -> Float[Tensor, " d"]:
    """The delta of points[code] times the scale of the block, `codes[edges[k]:edges[k + 1]]`.

    Raises:
        PayloadError: a scale or a point is not finite, or their product is beyond what a float32 delta can have.
    """
    most = float(np.abs(points).max(initial=0.0))
    # Not `>`: of NaN neither holds.
    if not float(np.abs(scales).max(initial=0.0)) * most <= LARGEST:
        raise PayloadError(Defect.NON_FINITE, f"{most:g} steps of the largest are not finite")
    return torch.from_numpy(kernels.look_up(codes, edges, points, scales))


def blocks_of(bounds: tuple[int, ...], size: int) -> int:
    """How many blocks of at most `size` coordinates of one slot there are."""
    return sum(-(-(end - begin) // size) for begin, end in pairwise(bounds))
