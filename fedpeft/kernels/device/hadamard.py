"""The randomised Walsh-Hadamard transform on a device: the butterfly of `fedpeft.kernels`, stage after stage."""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.kernels.device.rows import equal_rows

_SIGN = -(1 << 31)


def walsh_hadamard(x: Float[Tensor, " d"], edges: NDArray[np.int64]) -> Float[Tensor, " d"]:
    """What `fedpeft.kernels.walsh_hadamard` makes of `x`, to the last bit.

    Args:
        x: float32, contiguous.
        edges: as there.
    """
    out = torch.empty_like(x)
    for rows in equal_rows(edges):
        rows.put(_butterflies(rows.of(x)), out)
    return out


def _butterflies(x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    h, shape = 1, x.shape
    while h < shape[1]:
        pairs = x.reshape(-1, 2, h)
        made = torch.empty_like(pairs)
        torch.add(pairs[:, 0], pairs[:, 1], out=made[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=made[:, 1])
        x, h = made, 2 * h
    return x.view(shape)


def flip_signs(x: Float[Tensor, " d"], words: Int[Tensor, " w"]) -> Float[Tensor, " d"]:
    """Negate x[i] where bit i % 32 of words[i // 32] is set.

    Args:
        x: float32, contiguous.
        words: int64 in [0, 2^32), one for every 32 numbers.
    """
    low = words.view(torch.int32)[::2, None]
    bits = low >> torch.arange(32, dtype=torch.int32, device=x.device)
    signs = bits.bitwise_and_(1).mul_(_SIGN).view(-1)[: x.numel()]
    return signs.bitwise_xor_(x.view(torch.int32)).view(torch.float32)


def sample_hadamard(
    x: Float[Tensor, " d"],
    edges: NDArray[np.int64],
    words: Int[Tensor, " w"],
    rows: Int[Tensor, " k"],
    factors: NDArray[np.float32],
) -> Float[Tensor, " k"]:
    """What `fedpeft.kernels.sample_hadamard` takes of `x`, to the last bit; arguments as there."""
    z = walsh_hadamard(flip_signs(x, words), edges)
    blocks = torch.bucketize(rows, torch.from_numpy(edges[1:]).to(x.device), right=True)
    return z[rows] * torch.from_numpy(factors).to(x.device)[blocks]


def spread_hadamard(
    y: Float[Tensor, " k"],
    edges: NDArray[np.int64],
    words: Int[Tensor, " w"],
    rows: Int[Tensor, " k"],
    factors: NDArray[np.float32],
) -> Float[Tensor, " d"]:
    """What `fedpeft.kernels.spread_hadamard` makes of `y`, to the last bit; arguments as there."""
    blocks = torch.bucketize(rows, torch.from_numpy(edges[1:]).to(y.device), right=True)
    z = torch.zeros(int(edges[-1]), device=y.device)
    z[rows] = y * torch.from_numpy(factors).to(y.device)[blocks]
    out = flip_signs(walsh_hadamard(z, edges), words)
    for k in np.flatnonzero(torch.bincount(blocks, minlength=factors.size).cpu().numpy() == 0):
        out[edges[k] : edges[k + 1]] = 0
    return out
