"""Quantising what is nearly normal, on a device."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.kernels.device import sums
from fedpeft.kernels.device.rows import equal_rows

Scale: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]


def quantise_normal(
    z: Float[Tensor, " d"], edges: NDArray[np.int64], levels: NDArray[np.float32], scale: Scale
) -> tuple[UInt8[Tensor, " d"], NDArray[np.float32]]:
    """Codes as `fedpeft.kernels.quantise_normal` gives them, and a scale for each block.

    Args:
        z: float32, finite, contiguous.
        edges: as in `fedpeft.kernels.walsh_hadamard`.
        levels: float32[h], positive and rising.
        scale: from the sums [3, m] of that function and the blocks' sizes [m], the blocks' scales: quotients of two
            sums, or their roots, times what is the same for all orders of addition.
    """
    codes = torch.empty(z.numel(), dtype=torch.uint8, device=z.device)
    scales = np.empty(edges.size - 1, np.float32)
    for rows in equal_rows(edges):
        own = rows.of(z)
        found, scales[rows.which] = _quantise(own, levels, scale)
        rows.put(found, codes)
    return codes, scales


def _quantise(
    z: Float[Tensor, "m n"], levels: NDArray[np.float32], scale: Scale
) -> tuple[UInt8[Tensor, "m n"], NDArray[np.float32]]:
    m, n = z.shape
    slack = sums.slack(sums.additions(n), n)
    square = sums.row_sums(sums.squares, z)
    unsure = ~sums.settled(np.sqrt(square / n), slack)
    if unsure.any():
        square[unsure] = _by_numba(z, levels, unsure)[0]
    nearest = _nearest(z, np.sqrt(square / n).astype(np.float32), levels)
    table = torch.from_numpy(levels).to(z.device).double()
    inner = sums.row_sums(lambda x, c: x.double().abs_() * table[c.int()], z, nearest)
    quantised = sums.row_sums(lambda c: table.square()[c.int()], nearest)
    scales = scale(np.stack([square, inner, quantised]), np.full(m, n))
    unsure = ~sums.settled(scales, slack)
    if unsure.any():
        scales[unsure] = scale(_by_numba(z, levels, unsure), np.full(int(unsure.sum()), n))
    codes = torch.where(z >= 0, nearest + levels.size, levels.size - 1 - nearest)
    return codes, scales.astype(np.float32)


def _nearest(
    z: Float[Tensor, "m n"], deviation: NDArray[np.float32], levels: NDArray[np.float32]
) -> UInt8[Tensor, "m n"]:
    """Which level times its row's deviation each magnitude is nearest to."""
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    magnitude, nearest = z.abs(), torch.zeros_like(z, dtype=torch.uint8)
    for limit in torch.from_numpy(middles[:, None] * deviation).to(z.device):
        nearest += magnitude > limit[:, None]
    return nearest


def _by_numba(z: Float[Tensor, "m n"], levels: NDArray[np.float32], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The sums of some rows in the order in which numba adds."""
    chosen = z[torch.from_numpy(rows).to(z.device)].cpu().numpy()
    edges = z.shape[1] * np.arange(len(chosen) + 1)
    return kernels.quantise_normal(chosen.reshape(-1), edges, levels)[1]
