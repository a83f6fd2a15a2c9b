"""By what quantised numbers are multiplied: three answers that several codecs offer."""

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Scale: TypeAlias = Literal["mean", "norm", "unbiased"]


def check_scale(scale: object) -> None:
    """Pass when it is one of the three.

    Raises:
        ValueError: it is not.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be 'mean', 'norm' or 'unbiased', got {scale!r}")


def scales(
    scale: Scale, square: NDArray[np.float64], inner: NDArray[np.float64], quantised: NDArray[Any]
) -> NDArray[np.float64]:
    """Of each x that was rounded to q, the s for which ||x - s q|| is least, ||s q|| = ||x||, or <s q, x> = ||x||^2.

    Args:
        scale: which of these: "mean", "norm" or "unbiased".
        square: ||x||^2.
        inner: <q, x>; where it is 0, so is s.
        quantised: ||q||^2.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {"mean": inner / quantised, "norm": np.sqrt(square / quantised), "unbiased": square / inner}[scale]
    return np.where(inner > 0, found, 0.0)
