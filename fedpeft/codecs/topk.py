"""The largest coordinates of every chunk, with values of a few bits."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs import octaves
from fedpeft.codecs.base import LARGEST, Codec, Context, Field, Layout, Numbers, Parts, Plane, Symbols, finite, take
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import device
from fedpeft.space import Space


@dataclass(frozen=True)
class TopK(Codec):
    """Keep the largest magnitudes of every chunk and round them to a few bits: x^ = Q(TOP-k(x)).

    SparseLoCo (Sarfi, Thérien, Lidin and Belilovsky, 2025, arXiv 2508.15706, algorithm 1), whose error feedback is
    `ErrorFeedback(TopK(...), decay=0.95)`. It sends 12-bit places inside chunks and a table of values for each tensor;
    here the places are a mask, which the wire codes close to its entropy, a slot's scale is one byte (the mean kept
    magnitude, on a logarithmic grid), and all slots share one table of 2^(bits - 1) magnitudes relative to that,
    fitted to the delta. A slot whose kept magnitudes lie below 2^-31 of the largest slot's keeps nothing.

    Exactly max(1, round(density * size)) coordinates of a chunk are kept: of equal magnitudes the first, and zeros
    never.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (2, 4), "lora_A"),)), Context()
    >>> codec, x = TopK(density=0.5, chunk=4), torch.tensor([3.0, 0.0, -1.0, 0.5, 1.0, 0.0, 0.0, 0.0])
    >>> codec.decode(codec.encode(x, space, ctx), space, ctx)
    tensor([ 3.,  0., -1.,  0.,  1.,  0.,  0.,  0.])

    Args:
        density: fraction kept of each chunk, in (0, 1].
        bits: of a kept value, its sign among them, 1 to 4.
        chunk: coordinates of a slot that compete with each other; None for the whole slot, whose error is least.
    """

    density: float = 0.01
    bits: int = 2
    chunk: int | None = 4096

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if isinstance(self.bits, bool) or self.bits not in (1, 2, 3, 4) or not isinstance(self.bits, int):
            raise ValueError(f"bits must be 1, 2, 3 or 4, got {self.bits!r}")
        if self.chunk is not None and (isinstance(self.chunk, bool) or not isinstance(self.chunk, int)):
            raise ValueError(f"chunk must be a whole number or None, got {self.chunk!r}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    def layout(self, space: Space) -> Layout:
        """A table of magnitudes, a scale a slot, a mask over all coordinates, and a code for each kept one."""
        _, ks, _ = _chunks(self, space)
        return {
            "level": Field("numbers", 1 << (self.bits - 1)),
            "scale": Field("symbols", len(space.slots), levels=256),
            "mask": Field("plane", space.numel),
            "value": Field("symbols", int(ks.sum()), ragged=True, levels=1 << self.bits),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Select exactly, fit the table, round to it."""
        edges, ks, firsts = _chunks(self, space)
        mask, values, kept = _kept(delta, edges, ks)
        counts, means = _by_slot(values, kept, firsts)
        scale = octaves.places(means)
        if np.any(faint := (scale == octaves.LOWEST) & (counts > 0)):
            mask, values, kept = _kept(delta, edges, np.where(np.repeat(faint, np.diff(firsts)), 0, ks))
            counts, _ = _by_slot(values, kept, firsts)
        largest = means.max(initial=0.0) or 1.0
        codes, levels = kernels.quantise_kept(values, counts, octaves.shares(scale) * largest, 1 << (self.bits - 1))
        levels = np.minimum(levels * largest, LARGEST).astype(np.float32)
        return {
            "level": Numbers(levels),
            "scale": Symbols(scale, 256),
            "mask": Plane(mask, space.numel),
            "value": Symbols(codes, 1 << self.bits),
        }

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Look the kept values up and put them in their places.

        Raises:
            PayloadError: there are more or fewer values than the mask keeps.
        """
        mask, codes = take(parts, "mask", Plane), take(parts, "value", Symbols).values
        levels, scale = take(parts, "level", Numbers).values, take(parts, "scale", Symbols).values
        counts = kernels.kept_by_slot(mask.bits, np.array(space.bounds))
        if counts.sum() != codes.size:
            raise PayloadError(Defect.COUNT, f"the mask keeps {counts.sum()} coordinates, but {codes.size} values came")
        values = np.stack([levels, -levels], axis=1).reshape(-1)[codes]
        values *= np.repeat(octaves.shares(scale).astype(np.float32), counts)
        return torch.from_numpy(kernels.spread_kept(mask.bits, values, space.numel))


@lru_cache(maxsize=16)
def _chunks(codec: TopK, space: Space) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Edges of all chunks, how many coordinates each keeps, and each slot's first chunk (and their number)."""
    edges, firsts = [0], [0]
    for begin, end in pairwise(space.bounds):
        edges += [*range(begin + codec.chunk, end, codec.chunk)] if codec.chunk else []
        edges += [end] if end > begin else []
        firsts.append(len(edges) - 1)
    sizes = np.diff(edges)
    ks = np.maximum(1, np.round(codec.density * sizes)).astype(np.int64)
    return np.array(edges), ks, np.array(firsts)


def _kept(
    delta: Float[Tensor, " d"], edges: NDArray[np.int64], ks: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """What `kernels.keep_largest` gives; from a GPU only the mask's bits and the kept values come."""
    if not device.holds(delta):
        return kernels.keep_largest(finite(delta), edges, ks)
    mask, values, kept = device.keep_largest(device.finite(delta), edges, ks)
    return device.to_host(device.pack_bits(mask)), device.to_host(values), kept


def _by_slot(
    values: NDArray[np.float32], kept: NDArray[np.int64], firsts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many values each slot keeps, and their mean magnitude."""
    ends = np.concatenate([[0], np.cumsum(kept)])[firsts]
    means = [float(np.abs(values[a:b]).mean(dtype=np.float64)) if b > a else 0.0 for a, b in pairwise(ends)]
    return np.diff(ends), np.array(means)
