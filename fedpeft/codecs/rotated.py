"""Quantisation after a random rotation, which makes every delta look normal."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import LARGEST, Codec, Context, Field, Layout, Numbers, Parts, Symbols, take, with_largest
from fedpeft.codecs.scale import Scale, check_scale, scales
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import device
from fedpeft.space import Space

_SMALLEST = 64  # of a slot's last block, which is filled up with zeros

# The positive levels that quantise a standard normal number with the least mean squared error (Lloyd, 1982; Max, 1960).
_LEVELS = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
    4: (0.12839503, 0.388048299, 0.656759119, 0.942340456, 1.256231197, 1.618046386, 2.069017227, 2.732589571),
}


@dataclass(frozen=True)
class Rotated(Codec):
    """Rotate blocks at random, quantise every coordinate to a few bits, scale: x^ = S (H D)^-1 q(H D x).

    EDEN (Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak and Mitzenmacher, 2022, arXiv 2108.08842), whose case
    of 1 bit is DRIVE (the same, 2021, arXiv 2105.08339). H is a Hadamard matrix, D random signs of this client and
    round, so that the coordinates of H D x are nearly normal and the quantiser for normal numbers fits. Here a slot is
    rotated in blocks of powers of two and never together with another slot, which may be of another magnitude.

    * "unbiased": S = ||x||^2 / <q, H D x>, whose mean over rotations is nearly x: for the mean of many clients;
    * "mean": S = <q, H D x> / ||q||^2, which minimises ||x - x^||;
    * "norm": ||x^|| = ||x||.

    EDEN's mean is x for rotations drawn uniformly from all, which H D is near where a block's numbers are of like size.
    A few that outweigh the rest also outweigh it in every coordinate of H D x, so that at few bits the rest is lost in
    the mean too: of a block [3, 1, 0, ...] it is [3.33, 0, 0, ...] at 1 bit and [3.02, 0.95, 0, ...] at 4.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (64,), "head"),)), Context()
    >>> codec = Rotated(bits=1)
    >>> spike = torch.zeros(64).index_fill(0, torch.tensor([5]), 3.0)  # a rotation spreads it evenly
    >>> torch.equal(codec.decode(codec.encode(spike, space, ctx), space, ctx), spike)
    True

    Args:
        bits: 1 to 4 for each coordinate.
        scale: which S.
        block: coordinates that are rotated together, a power of two of at least 64.
    """

    bits: int = 1
    scale: Scale = "unbiased"
    block: int = 4096

    def __post_init__(self) -> None:
        if self.bits not in _LEVELS or isinstance(self.bits, bool):
            raise ValueError(f"bits must be 1, 2, 3 or 4, got {self.bits!r}")
        check_scale(self.scale)
        whole = isinstance(self.block, int) and self.block >= _SMALLEST
        if not whole or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two of at least {_SMALLEST}, got {self.block!r}")

    def layout(self, space: Space) -> Layout:
        """One scale a block, and one code a rotated coordinate."""
        edges, _ = self._blocks(space)
        return {
            "scale": Field("numbers", len(edges) - 1),
            "code": Field("symbols", int(edges[-1]), levels=1 << self.bits),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Rotate, quantise, and scale block by block; on a GPU where the delta lies there, to the same bits."""
        edges, starts = self._blocks(space)
        if device.holds(delta):
            codes, scale = self._quantised_there(device.finite(delta), edges, starts, ctx, space)
        else:
            codes, scale = self._quantised(delta, edges, starts, ctx)
        if not self._bounded(scale, edges):
            raise ValueError("the delta is too large for float32: what its rotation is rounded to may add up beyond it")
        return {"scale": Numbers(scale), "code": Symbols(codes, 1 << self.bits)}

    def _quantised(
        self, delta: Float[Tensor, " d"], edges: NDArray[np.int64], starts: NDArray[np.int64], ctx: Context
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        x, largest = with_largest(delta)
        shrink = _power(largest)
        signs, levels = self._signs(ctx, int(edges[-1])), np.array(_LEVELS[self.bits], np.float32)
        codes, sums = kernels.rotate_and_quantise(x, starts, edges, signs, 1 / shrink, levels)
        return codes, self._scale(sums, np.diff(edges), shrink).astype(np.float32)

    def _quantised_there(
        self, x: Float[Tensor, " d"], edges: NDArray[np.int64], starts: NDArray[np.int64], ctx: Context, space: Space
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        n = int(edges[-1])
        z = torch.zeros(n, dtype=torch.float32, device=x.device)
        shrink = _power(float(x.abs().max()) if x.numel() else 0.0)
        places = edges[np.searchsorted(starts, space.bounds[:-1])].tolist()
        for (begin, end), place in zip(pairwise(space.bounds), places, strict=True):
            torch.mul(x[begin:end], 1 / shrink, out=z[place : place + end - begin])
        z = device.flip_signs(z, device.stream_words(ctx.private, -(-n // 32), 0, x.device))
        levels = np.array(_LEVELS[self.bits], np.float32)
        scale_of = partial(self._scale, shrink=shrink)
        codes, scale = device.quantise_normal(device.walsh_hadamard(z, edges), edges, levels, scale_of)
        width = 1 << (self.bits - 1).bit_length()
        return kernels.packing.unpack_symbols(device.to_host(device.pack_codes(codes, width)), width, n), scale

    def _scale(self, sums: NDArray[np.float64], sizes: NDArray[np.int64], shrink: float) -> NDArray[np.float64]:
        # The inverse transform multiplies by the block's size.
        return shrink * scales(self.scale, *sums) / sizes

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Look levels up, rotate back.

        Raises:
            PayloadError: a scale is beyond what a float32 delta can have.
        """
        factors, codes = take(parts, "scale", Numbers).values, take(parts, "code", Symbols).values
        edges, starts = self._blocks(space)
        half = _LEVELS[self.bits]
        if not self._bounded(factors, edges):
            raise PayloadError(Defect.NON_FINITE, "a block's scale times its size is not finite")
        levels = np.array([-level for level in reversed(half)] + list(half), np.float32)
        return torch.from_numpy(
            kernels.rotate_back(codes, factors, levels, starts, edges, self._signs(ctx, int(edges[-1])))
        )

    def _bounded(self, factors: NDArray[np.float32], edges: NDArray[np.int64]) -> bool:
        """Whether no sum over a block can leave float32; never so if a scale is NaN."""
        largest = _LEVELS[self.bits][-1]
        return bool(np.all(np.abs(factors.astype(np.float64)) * np.diff(edges) * largest < LARGEST))

    def _blocks(self, space: Space) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges of the blocks, and where in the delta each begins; the last of a slot may be padded."""
        sizes: list[int] = []
        held: list[int] = []
        for begin, end in pairwise(space.bounds):
            whole, left = divmod(end - begin, self.block)
            sizes += [self.block] * whole
            held += [self.block] * whole
            while left > 0:
                sizes.append(max(_SMALLEST, 1 << (left.bit_length() - 1)))
                held.append(min(sizes[-1], left))
                left -= held[-1]
        return np.cumsum([0, *sizes]), np.cumsum([0, *held])

    def _signs(self, ctx: Context, n: int) -> NDArray[np.uint32]:
        return ctx.private.words(-(-n // 32))


def _power(largest: float) -> float:
    """The power of two by which numbers are divided, exactly, so that no sum over a block leaves float32."""
    return 2.0 ** min(max(math.frexp(largest)[1], -126), 126)
