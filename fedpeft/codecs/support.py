"""Coordinates that both ends know without being told: no places are sent. Here, each client's own at random."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import KEPT, LARGEST, Codec, Context, Layout, Parts, finite
from fedpeft.codecs.identity import Identity
from fedpeft.codecs.uniform import Uniform
from fedpeft.errors import Defect, PayloadError
from fedpeft.random import Stream
from fedpeft.space import Slot, Space

EXACT, _ROUNDED = Identity(), Uniform(bits=4, stochastic=True)


class Draw(Protocol):
    """Which coordinates of a slot are kept."""

    def take(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The kept coordinates."""
        ...

    def put(self, values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Put kept coordinates where they were taken from."""
        ...


Drawn: TypeAlias = tuple[tuple[int, int], tuple[int, int], Draw]


@dataclass(frozen=True, eq=False)
class Strata:
    """One coordinate of each of as many stretches.

    Args:
        words: uint32[k + 1], random.
    """

    words: NDArray[np.uint32]

    def take(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The kept coordinates."""
        return kernels.take_strata(x, self.words)

    def put(self, values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Put kept coordinates where they were taken from."""
        kernels.put_strata(values, self.words, out)


@dataclass(frozen=True)
class Support(Codec):
    """A set of max(1, round(density * size)) coordinates of each slot, encoded by another codec.

    The codec works in a space of slots of the same names whose only dimension is how many coordinates are kept.
    """

    density: float
    codec: Codec
    rescale: bool

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if not isinstance(self.codec, Codec):
            raise ValueError(f"{type(self).__name__}: codec must be a codec, got {self.codec!r}")
        if self.codec.reads:
            raise ValueError(
                f"{type(self).__name__}: {self.codec!r} reads whole slots, and would get a few coordinates"
            )
        if not isinstance(self.rescale, bool):
            raise ValueError(f"rescale must be True or False, got {self.rescale!r}")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether kept values may be summed while encoded: not where each client keeps its own."""
        return False

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether what is dropped is made up for, and kept values are unbiased or not rounded at all."""
        return self.rescale and (self.codec.unbiased or self.codec == EXACT)

    def _stream(self, ctx: Context) -> Stream:
        raise NotImplementedError

    def layout(self, space: Space) -> Layout:
        """The codec's, of the kept coordinates."""
        return self.codec.layout(_kept(self, space))

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Draw the coordinates, take them out, encode them."""
        x, kept = finite(delta), _kept(self, space)
        values = np.empty(kept.numel, np.float32)
        for (begin, end), (first, last), draw in self._slots(space, kept, ctx):
            values[first:last] = draw.take(x[begin:end])
            if (most := float(np.abs(values[first:last]).max())) * self._factor(end - begin, last - first) > LARGEST:
                raise ValueError(f"{most:g} cannot be scaled up by the inverse of the density {self.density}")
        return self.codec.encode(torch.from_numpy(values), kept, ctx.nested(KEPT))

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Draw the same coordinates and put the decoded values there; zeros elsewhere.

        Raises:
            PayloadError: a value is beyond what a float32 delta can have.
        """
        return self._put(self._values(parts, space, ctx), space, ctx)

    def _values(self, parts: Parts, space: Space, ctx: Context) -> NDArray[np.float32]:
        """The kept coordinates, scaled up."""
        kept = _kept(self, space)
        values: NDArray[np.float32] = self.codec.decode(parts, kept, ctx.nested(KEPT)).numpy()
        for (begin, end), (first, last) in zip(pairwise(space.bounds), pairwise(kept.bounds), strict=True):
            if self.rescale and last > first:
                with np.errstate(over="ignore"):
                    values[first:last] *= np.float32(self._factor(end - begin, last - first))
        if not kernels.all_finite(values):
            raise PayloadError(Defect.NON_FINITE, f"a value over the density {self.density} is not finite")
        return values

    def _put(self, values: NDArray[np.float32], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """A delta of kept coordinates, and zeros."""
        out = np.zeros(space.numel, np.float32)
        for (begin, end), (first, last), draw in self._slots(space, _kept(self, space), ctx):
            draw.put(values[first:last], out[begin:end])
        return torch.from_numpy(out)

    def _factor(self, size: int, kept: int) -> float:
        return float(np.float32(size / kept)) if self.rescale else 1.0

    def _slots(self, space: Space, kept: Space, ctx: Context) -> Iterator[Drawn]:
        """Range of each slot that has coordinates, range of its kept ones, and which those are."""
        stream = self._stream(ctx)
        for j, (whole, part) in enumerate(zip(pairwise(space.bounds), pairwise(kept.bounds), strict=True)):
            if part[1] > part[0]:
                yield whole, part, Strata(stream.words(part[1] - part[0] + 1, start=part[0] + j))


@dataclass(frozen=True)
class RandomMask(Support):
    """Keep random coordinates, of each client's own choice, and scale them up: x^ = (1 - m) x / (1 - p).

    DARE (Yu, Yu, Yu, Huang and Li, 2024, arXiv 2311.03099, section 3.2), where m_i ~ Bernoulli(p) and density is
    1 - p. Here exactly max(1, round(density * size)) coordinates of each slot are kept, one of each of as many
    stretches, every coordinate with the same probability.

    Under `ErrorFeedback` use `rescale=False`: what is scaled up leaves a residual larger than what came in.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (4,), "head"),)), Context()
    >>> codec = RandomMask(density=0.5, codec=Identity())
    >>> codec.decode(codec.encode(torch.ones(4), space, ctx), space, ctx).sum()
    tensor(4.)

    Args:
        density: fraction kept of each slot, in (0, 1].
        codec: what encodes the kept values.
        rescale: divide by the share that is kept, so that the mean is x; else x^ = (1 - m) x.
    """

    density: float = 0.1
    codec: Codec = _ROUNDED
    rescale: bool = True

    def _stream(self, ctx: Context) -> Stream:
        return ctx.private


@lru_cache(maxsize=64)
def _kept(codec: Support, space: Space) -> Space:
    sizes = [min(slot.numel, max(1, round(codec.density * slot.numel))) for slot in space.slots]
    slots = (Slot(slot.name, (size,), slot.role) for slot, size in zip(space.slots, sizes, strict=True))
    return Space(tuple(slots), space.config, space.base)
