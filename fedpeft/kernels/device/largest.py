"""Exactly the k largest magnitudes of each of many chunks, on a device."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.kernels.device.rows import equal_rows
from fedpeft.kernels.device.select import MAGNITUDE, kth_magnitude, magnitudes


def keep_largest(
    x: Float[Tensor, " d"], edges: NDArray[np.int64], ks: NDArray[np.int64]
) -> tuple[Bool[Tensor, " d"], Float[Tensor, " k"], NDArray[np.int64]]:
    """As `fedpeft.kernels.keep_largest`, but the mask is not packed.

    Args:
        x: float32, finite, contiguous.
        edges: as there.
        ks: as there.
    """
    mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    kept = np.zeros(ks.size, np.int64)
    for rows in equal_rows(edges):
        held = _first_of_the_largest(magnitudes(rows.of(x)), rows.each(ks, x.device))
        rows.put(held, mask)
        kept[rows.which] = held.sum(dim=1).cpu().numpy()
    return mask, x[mask], kept


def _first_of_the_largest(magnitude: Int[Tensor, "m n"], k: Int[Tensor, "m 1"]) -> Bool[Tensor, "m n"]:
    least = kth_magnitude(magnitude, k.clamp(min=1)).clamp(min=1)
    least = least.masked_fill(k == 0, MAGNITUDE)  # which no finite number reaches
    above, equal = magnitude > least, magnitude == least
    room = k - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
