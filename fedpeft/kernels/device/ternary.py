"""Ternary vectors on a device: two packed planes and a scale for each slot."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.kernels.device import sums
from fedpeft.kernels.device.planes import pack_bits
from fedpeft.kernels.device.rows import Rows, equal_rows
from fedpeft.kernels.device.select import kth_magnitude, magnitudes

Scale: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
_LANES = 64  # among which numba deals out the terms of a sum


def pack_ternary(
    x: Float[Tensor, " d"], bounds: NDArray[np.int64], ks: NDArray[np.int64], scale: Scale
) -> tuple[UInt8[Tensor, " mask"], UInt8[Tensor, " signs"], NDArray[np.int64], NDArray[np.float32]]:
    """Keep the signs of each slot's k largest magnitudes, all that tie with them, and no zero.

    Args:
        x: float32, finite, contiguous; slot j is `x[bounds[j]:bounds[j + 1]]`.
        bounds: int64[m + 1], rising from 0 to d.
        ks: int64[m], at least 1 where a slot is not empty.
        scale: from how many are kept, the sum of kept |x| and the sum of all x^2, each [m], a slot's scale: a quotient
            of two of them, or its root.

    Returns:
        mask and signs as `fedpeft.kernels.pack_ternary` packs them, how many each slot kept, and float32 scales.
    """
    mask = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    kept, scales = np.zeros(ks.size, np.int64), np.zeros(ks.size, np.float32)
    for rows in equal_rows(bounds):
        own = rows.of(x)
        magnitude = magnitudes(own)
        least = kth_magnitude(magnitude, rows.each(ks, x.device)).clamp(min=1)
        held = magnitude >= least
        rows.put(held, mask)
        kept[rows.which] = held.sum(dim=1).cpu().numpy()
        scales[rows.which] = _scales(rows, own, held, least, scale)
    return pack_bits(mask), pack_bits(torch.signbit(x)[mask]), kept, scales


def _scales(
    rows: Rows, own: Float[Tensor, "m n"], held: Bool[Tensor, "m n"], least: Int[Tensor, "m 1"], scale: Scale
) -> NDArray[np.float32]:
    """Scales as numba's sums give them."""
    count = held.sum(dim=1).cpu().numpy()
    kept_l1 = sums.row_sums(lambda x, kept: x.double().abs_().masked_fill_(~kept, 0), own, held)
    total_l2sq = sums.row_sums(sums.squares, own)
    scales = scale(count, kept_l1, total_l2sq)
    theirs = rows.size // _LANES + _LANES + 2
    for i in np.flatnonzero(~sums.settled(scales, sums.slack(sums.additions(rows.size), theirs))):
        lead = int(rows.starts[i]) % _LANES  # the lanes are those of the slot's place
        x = np.concatenate([np.zeros(lead, np.float32), own[i].cpu().numpy()])
        threshold = least[i].cpu().numpy().view(np.float32)
        scales[i : i + 1] = scale(*kernels.pack_ternary(x, np.array([0, x.size]), threshold)[2:])
    return scales.astype(np.float32)
