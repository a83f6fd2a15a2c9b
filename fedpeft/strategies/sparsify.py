"""Sparser updates, then any strategy: random, by magnitude, or without the largest."""

import math
import zlib
from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.random import Stream
from fedpeft.space import Slot
from fedpeft.strategies.base import Context, Update
from fedpeft.strategies.drawing import Part, stream_of
from fedpeft.strategies.wrapping import Before


@dataclass(frozen=True)
class _EachSlot(Before):
    """Fewer coordinates of each slot, by itself."""

    density: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")

    def before(self, update: Update, ctx: Context) -> Update:
        """The update with fewer coordinates."""
        x = np.ascontiguousarray(update.delta.numpy())
        out = np.zeros_like(x)
        stream = self._stream(x, ctx)
        for j, (slot, (begin, end)) in enumerate(zip(ctx.space.slots, pairwise(ctx.space.bounds), strict=True)):
            if end > begin:
                # A slot of n numbers takes n + 1 words at most, so each has words of its own.
                self._fill(slot, x[begin:end], stream, begin + j, out[begin:end])
        return replace(update, sent=torch.from_numpy(out))

    def _stream(self, x: NDArray[np.float32], ctx: Context) -> Stream:
        """Of the client, told apart by its delta: a strategy sees no names, and needs none to draw the same again."""
        return stream_of(ctx, Part.DELLA, zlib.crc32(x.data, zlib.crc32(ctx.space.fingerprint)))

    def _kept(self, size: int) -> int:
        return min(size, max(1, round(self.density * size)))

    @abstractmethod
    def _fill(self, slot: Slot, x: NDArray[np.float32], stream: Stream, at: int, out: NDArray[np.float32]) -> None:
        """Write what is left of a slot over zeros; words of the stream are the slot's own from `at` on."""


@dataclass(frozen=True)
class DARE(_EachSlot):
    """Keep random coordinates of each update and scale them up, then merge: drop and rescale.

    Yu, Yu, Yu, Huang and Li, 2024, arXiv 2311.03099, section 3.2: x^ = (1 - m) x / (1 - p) with m_i ~ Bernoulli(p);
    density is 1 - p. Here exactly max(1, round(density * size)) coordinates of each slot are kept, one of each of as
    many stretches, every coordinate with the same probability. `DARE(Mean(), density)` is the paper's with task
    arithmetic: the mean of what it merges is what `Mean()` does. `DARE(TIES(trim="none"), density)` is `dare_ties`.

    PEFT's `dare_*` divide by the density; mergekit's keep each tensor's L1 norm instead: rescale="l1".

    At a site the codec `RandomMask` does this before it sends, so that fewer bytes travel; a server that gets whole
    deltas gains no bytes by it.

    Args:
        strategy: merges.
        density: fraction kept of each slot, in (0, 1].
        rescale: "density" divides by the share that is kept, so that the mean is x; "l1" keeps the sum of magnitudes.
        seed: "private": each client's coordinates are its own, "shared": all clients' are the same in a round, so that
            the merged delta is as sparse as they are.
    """

    rescale: Literal["density", "l1"] = "density"
    seed: Literal["private", "shared"] = "private"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale not in ("density", "l1"):
            raise ValueError(f"rescale must be 'density' or 'l1', got {self.rescale!r}")
        if self.seed not in ("private", "shared"):
            raise ValueError(f"seed must be 'private' or 'shared', got {self.seed!r}")

    def _stream(self, x: NDArray[np.float32], ctx: Context) -> Stream:
        if self.seed == "private":
            return replace(super()._stream(x, ctx), part=Part.DARE)
        return stream_of(ctx, Part.DARE_SHARED, zlib.crc32(ctx.space.fingerprint))

    def _fill(self, slot: Slot, x: NDArray[np.float32], stream: Stream, at: int, out: NDArray[np.float32]) -> None:
        words = stream.words(self._kept(x.size) + 1, start=at)
        values = kernels.take_strata(x, words).astype(np.float64)
        kept = np.abs(values).sum()
        if kept > 0:
            whole = np.abs(x).sum(dtype=np.float64)
            values *= whole / kept if self.rescale == "l1" else x.size / values.size
        kernels.put_strata(values.astype(np.float32), words, out)


@dataclass(frozen=True)
class DELLA(_EachSlot):
    """Keep x_i with a probability q_i that rises with its rank in its row, as x_i / q_i, then merge.

    MAGPRUNE of DELLA (Deep, Bhardwaj and Poria, 2024, arXiv 2406.11617, section 2): q_i rises evenly from
    density - epsilon for the smallest magnitude of a row to density + epsilon for the largest. Magnitudes that nearly
    agree share their mean rank, and zeros are never kept. A row is what the slot's last dimension runs over; a slot of
    one dimension is one row. `DELLA(TIES(trim="none"), density)` is the paper's method, `DELLA(Mean(), density)` is
    `della_linear`.

    The paper's epsilon is the whole width, twice this one, which is mergekit's. mergekit keeps each tensor's L1 norm
    instead of dividing by q_i, which is biased towards what is large.

    At a site the codec `MagnitudeMask` does this before it sends.

    Args:
        strategy: merges.
        density: mean probability of being kept.
        epsilon: density -+ epsilon must lie in (0, 1].
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.epsilon < self.density and self.density + self.epsilon <= 1):
            raise ValueError(f"epsilon must leave {self.density} -+ epsilon in (0, 1], got {self.epsilon}")

    def _fill(self, slot: Slot, x: NDArray[np.float32], stream: Stream, at: int, out: NDArray[np.float32]) -> None:
        row = slot.shape[-1] if len(slot.shape) > 1 else slot.numel
        least, most = self.density - self.epsilon, self.density + self.epsilon
        mask = np.zeros((x.size + 63) // 64, np.uint64)
        kept = kernels.keep_by_rank(x, row, least, most, stream.words(x.size, start=at), mask, 0)
        out[:] = kernels.spread_kept(mask.view(np.uint8)[: (x.size + 7) // 8], kept, x.size)


@dataclass(frozen=True)
class Breadcrumbs(_EachSlot):
    """Drop the largest magnitudes of each slot, which are outliers, and the smallest, which are noise, then merge.

    Davari and Belilovsky, 2024, arXiv 2312.06795, section 3: a mask for each layer between two percentiles of |x|. Of a
    slot of n, round(gamma n) of the largest go and the next max(1, round(density n)) stay; what ties with the largest
    or the smallest that stays does so too, so that a slot of one magnitude is not trimmed at its upper end. A slot too
    small to lose one loses none. mergekit's `breadcrumbs` rounds both numbers down, so with gamma = 0.01 it drops the
    largest from 100 numbers on, where 51 are enough here, and of a tensor so small that the density is less than one of
    its numbers it keeps nothing. What is kept is not scaled up: the alpha of the paper is that of a `Scaled` around it.

    On sparse updates beware: gamma is a share of the whole slot, and may be all that is not zero.

    Args:
        strategy: merges.
        density: fraction kept of each slot, in (0, 1].
        gamma: fraction of each slot dropped for being largest, in [0, 1 - density].
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.gamma >= 0 and (self.density + self.gamma <= 1 or math.isclose(self.density + self.gamma, 1))):
            raise ValueError(f"gamma must lie in [0, 1 - density], which is {1 - self.density:g}, got {self.gamma}")

    def _fill(self, slot: Slot, x: NDArray[np.float32], stream: Stream, at: int, out: NDArray[np.float32]) -> None:
        kept = self._kept(x.size)
        dropped = min(round(self.gamma * x.size), x.size - kept)
        size = np.abs(x)
        most = kernels.magnitude_threshold(x, dropped + 1)
        least = kernels.magnitude_threshold(x, dropped + kept)
        np.copyto(out, x, where=(least <= size) & (size <= most))
