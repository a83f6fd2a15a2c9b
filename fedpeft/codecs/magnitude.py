"""Random coordinates, the larger the likelier, scaled up to what was dropped."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import LARGEST, Codec, Context, Field, Layout, Numbers, Parts, Plane, Symbols, finite, take
from fedpeft.codecs.scaled import longest_step
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space


@dataclass(frozen=True)
class MagnitudeMask(Codec):
    """Keep x_i with a probability 1 - p_i that rises with its rank in its row: x^_i = x_i / (1 - p_i).

    MAGPRUNE of DELLA (Deep, Bhardwaj and Poria, 2024, arXiv 2406.11617, section 2): p_i = p_min + Delta_i with
    Delta_i = eps / n * r_i and p_min = p - eps / 2, r_i the rank from the largest magnitude of n. Here eps / (n - 1)
    makes the mean of p_i exactly p, density is 1 - p, magnitudes that nearly agree share their mean rank, and zeros
    are never kept; mergekit's `epsilon` is half of this one. Kept values are rounded up or down at random to 2^bits - 1
    multiples of a slot's step, so that the mean stays x.

    A row is what the slot's last dimension runs over; a slot of one dimension is one row.

    Args:
        density: mean probability of being kept, in (0, 1].
        eps: how far the probabilities of a row's smallest and largest lie apart; density -+ eps / 2 in (0, 1].
        bits: of a kept value, 2 to 8.
    """

    density: float = 0.1
    eps: float = 0.1
    bits: int = 4

    unbiased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if not (0 <= self.eps < 2 * self.density and self.density + self.eps / 2 <= 1):
            raise ValueError(f"eps must leave {self.density} -+ eps / 2 in (0, 1], got {self.eps}")
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {self.bits!r}")

    @property
    def _half(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def layout(self, space: Space) -> Layout:
        """A step a slot, a mask over all coordinates, and a code for each kept one."""
        return {
            "step": Field("numbers", len(space.slots)),
            "mask": Field("plane", space.numel),
            "value": Field("symbols", space.numel, ragged=True, levels=2 * self._half + 1),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Rank, draw, scale up and round, slot by slot."""
        x = finite(delta)
        mask = np.zeros((x.size + 63) // 64, np.uint64)
        steps, codes, drawn = np.zeros(len(space.slots), np.float32), [], space.numel
        for j, (slot, (begin, end)) in enumerate(zip(space.slots, pairwise(space.bounds), strict=True)):
            if begin == end:
                continue
            words = ctx.private.words(end - begin, start=begin)
            least, most = self.density - self.eps / 2, self.density + self.eps / 2
            kept = kernels.keep_by_rank(x[begin:end], _row(slot), least, most, words, mask, begin)
            largest = np.abs(kept).max(initial=0.0)
            if not np.isfinite(largest):
                raise ValueError(f"slot {slot.name!r} cannot be scaled up by the inverse of the density {self.density}")
            steps[j] = min(largest / self._half, longest_step(self._half))
            codes.append(self._round(kept, steps[j], ctx.private.words(kept.size, start=drawn)))
            drawn += kept.size
        return {
            "step": Numbers(steps),
            "mask": Plane(mask.view(np.uint8)[: (x.size + 7) // 8], x.size),
            "value": Symbols(np.concatenate([np.empty(0, np.uint8), *codes]), 2 * self._half + 1),
        }

    def _round(self, values: NDArray[np.float32], step: np.float32, words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Codes of values over the step, up with the probability of what is cut off."""
        if step == 0:
            return np.full(values.size, self._half, np.uint8)
        # In float64, which holds all 32 bits: in float32 a noise close to 1 would round up to it.
        rounded = words * 2.0**-32
        rounded += values / step
        np.floor(rounded, out=rounded)
        return (np.clip(rounded, -self._half, self._half, out=rounded) + self._half).astype(np.uint8)

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply codes by steps and put them in their places.

        Raises:
            PayloadError: a step is beyond what a float32 delta can have, or values and mask do not fit.
        """
        mask, codes = take(parts, "mask", Plane), take(parts, "value", Symbols).values
        steps = take(parts, "step", Numbers).values
        if float(np.abs(steps).max(initial=0.0)) * self._half > LARGEST:
            raise PayloadError(Defect.NON_FINITE, f"{self._half} steps of the largest are not finite")
        counts = kernels.kept_by_slot(mask.bits, np.array(space.bounds))
        if counts.sum() != codes.size:
            raise PayloadError(Defect.COUNT, f"the mask keeps {counts.sum()} coordinates, but {codes.size} values came")
        values = codes.astype(np.float32)
        values -= self._half
        values *= np.repeat(steps, counts)
        return torch.from_numpy(kernels.spread_kept(mask.bits, values, space.numel))


def _row(slot: Slot) -> int:
    return slot.shape[-1] if len(slot.shape) > 1 else slot.numel
