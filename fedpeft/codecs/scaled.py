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


def reaching(steps: NDArray[np.floating], most: float) -> NDArray[np.float32]:
    """Steps as they are sent: where `most` of them are beyond float32, which no delta is, a millionth less than that.

    Args:
        steps: not negative.
        most: of a step that a code stands for.
    """
    bounded: NDArray[np.float32] = np.minimum(steps, LARGEST * (1 - 1e-6) / most).astype(np.float32)
    return bounded


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
