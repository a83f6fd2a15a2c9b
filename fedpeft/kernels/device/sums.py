"""Sums in an order of the device's choice, and what may be said about a sum in another order."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_FOLD, _PIECE = 1 << 10, 1 << 20
_UNIT = 2.0**-53  # relative error of one float64 addition, at most


def row_sums(term: Callable[..., Float[Tensor, "m piece"]], *rows: Shaped[Tensor, "m n"]) -> NDArray[np.float64]:
    """Sums over rows of what a function makes of each number, float64[m] on the host.

    Args:
        term: from pieces of the rows to float64, none negative.
        rows: one or more matrices of a shape.
    """
    total = torch.zeros(rows[0].shape[0], dtype=torch.float64, device=rows[0].device)
    for pieces in zip(*(torch.split(x, _PIECE, dim=1) for x in rows), strict=True):
        terms = term(*pieces)
        total += functional.pad(terms, (0, -terms.shape[1] % _FOLD)).view(terms.shape[0], -1, _FOLD).sum(2).sum(1)
    sums: NDArray[np.float64] = total.cpu().numpy()
    return sums


def squares(x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The squares of float32 numbers, which float64 holds exactly."""
    return x.double().square_()


def additions(n: int) -> int:
    """The most additions that a term of `row_sums` over n terms goes through, in whatever order the device adds."""
    return _FOLD + _PIECE // _FOLD + n // _PIECE + 1


def slack(ours: int, theirs: int) -> float:
    """How far apart, relatively, two quotients of sums can be whose terms go through so many additions at most.

    A sum of exact terms, none negative, is off by no more than 2^-53 for each addition that a term goes through
    (N. Higham, "Accuracy and stability of numerical algorithms", 2002, section 4.2). A quotient holds two sums; a few
    more roundings are allowed for what is done to it afterwards, and a hundredth for products of errors.
    """
    return 1.01 * 2 * (ours + theirs + 16) * _UNIT


def settled(value: NDArray[np.float64], slack: float) -> NDArray[np.bool_]:
    """Whether all numbers within a relative distance of `value` round to the same float32."""
    with np.errstate(over="ignore"):
        low, high = (value * (1 - slack)).astype(np.float32), (value * (1 + slack)).astype(np.float32)
    same: NDArray[np.bool_] = low == high
    return same
