"""Numbers made of the sum of squares of all coordinates on a device."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.kernels.device import sums

_LANES = 4  # among which numba deals out the terms of a sum


def of_square(x: Float[Tensor, " d"], number: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> np.float32:
    """What a function makes of ||x||^2, as it makes it of numba's sum, in float32.

    Args:
        x: float32, finite, contiguous.
        number: from float64[1] to float64[1]: a quotient with the sum, or its root.
    """
    found = number(sums.row_sums(sums.squares, x[None]))
    theirs = x.numel() // _LANES + _LANES
    if not sums.settled(found, sums.slack(sums.additions(x.numel()), theirs)).all():
        found = number(kernels.block_squares(x.cpu().numpy(), np.array([0, x.numel()])))
    return np.float32(found[0])
