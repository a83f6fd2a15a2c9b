"""Coordinates that are the same for all clients of a round: drawn, or elected by what the last round moved."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.codecs.base import ROUNDING, Codec, Context, Sketch, finite
from fedpeft.codecs.support import EXACT, Drawn, Support
from fedpeft.random import Stream
from fedpeft.space import Space


@dataclass(frozen=True)
class PublicSupport(Support):
    """Keep coordinates that are the same for all clients of a round: x^_i = x_i for i in S, else 0.

    The random mask of Konečný, McMahan, Yu, Richtárik, Suresh and Bacon, 2016, arXiv 1610.05492, section 2, where each
    client draws its own. Here S is of the round, so that encoded updates can be summed, by secure aggregation too, and
    the sum is no denser than its terms.

    With elect="seed", S is drawn as in `RandomMask`. With elect="last" it is elected: the largest coordinates of the
    last step of the public adapter, in each slot, and a drawn share of the others so that S can move. Both ends hold
    that step, so the election costs no bytes: what was merged is the tally. It counts as the strategy does: by size
    under `Mean`, by head under `TIES(trim="none", elect="count", aggregate="margin")` with ternary values. As a round
    can only move what it carried, S keeps the best of what it had and tries others in the place of the rest (SET:
    Mocanu et al., 2018, arXiv 1707.04780, which drops by weight). In the first round, and where nothing moved, all is
    drawn. Who can bend the merge can bend the election, and S tells everyone where the adapter still moves, as the
    adapter does.

    >>> import torch
    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (4,), "head"),)), Context()
    >>> codec = PublicSupport(density=0.5)
    >>> codec.encode(torch.ones(4), space, ctx)["values"].values
    array([1., 1.], dtype=float32)

    Args:
        density: fraction kept of each slot, in (0, 1].
        codec: what encodes the kept values; sums are exact where it is linear, as `Identity()` is.
        rescale: divide by the share that is kept, so that the mean over rounds is x; not under `ErrorFeedback`, and not
            with elect="last", under which coordinates are not equally likely.
        elect: "seed" or "last".
        explore: share of an elected S that is drawn, in (0, 1], rounded up; without use for elect="seed".
    """

    density: float = 0.1
    codec: Codec = EXACT
    rescale: bool = False
    elect: Literal["seed", "last"] = "seed"
    explore: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elect not in ("seed", "last"):
            raise ValueError(f"elect must be 'seed' or 'last', got {self.elect!r}")
        if not 0 < self.explore <= 1:
            raise ValueError(f"explore must lie in (0, 1], got {self.explore}")
        if self.elect == "last" and self.rescale:
            raise ValueError("rescale=True makes up for what is dropped where all is equally likely: use elect='seed'")

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """Both adapters that the last step lies between, where it elects."""
        return frozenset({"start", "before"}) if self.elect == "last" else frozenset()

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the codec of the kept values is."""
        return self.codec.linear

    def sketch(self, space: Space, ctx: Context) -> Sketch:
        """The kept values, decoded, then zeros between them."""
        # The same vectors elect the same coordinates; a sketch keeps them, so no other ones can have their identity.
        elected = (id(ctx.start), id(ctx.before)) if self.reads else ()
        return Sketch(
            key=(repr(self), space.fingerprint, self._stream(ctx), elected),
            values=lambda parts: self._values(parts, space, ctx),
            spread=lambda values: self._put(values, space, ctx),
            longest=lambda values: ROUNDING * float(np.linalg.norm(values.astype(np.float64))),
        )

    def _stream(self, ctx: Context) -> Stream:
        return ctx.shared

    def _slots(self, space: Space, kept: Space, ctx: Context) -> Iterator[Drawn]:
        if self.elect == "seed" or ctx.start is None or ctx.before is None:
            yield from super()._slots(space, kept, ctx)
            return
        stream, moved = self._stream(ctx), finite(ctx.start - ctx.before)
        sizes = np.diff(kept.bounds)
        elected = sizes - np.ceil(self.explore * sizes).astype(np.int64)
        mask, _, _ = kernels.keep_largest(moved, np.array(space.bounds), elected)
        won = np.unpackbits(mask, count=space.numel, bitorder="little").view(bool)
        for whole, part in zip(pairwise(space.bounds), pairwise(kept.bounds), strict=True):
            if part[1] > part[0]:
                own = won[slice(*whole)]
                first, others = np.flatnonzero(own), np.flatnonzero(~own)
                words = stream.words(2 * (part[1] - part[0] - first.size), start=2 * part[0])
                yield whole, part, _Places(np.concatenate([first, others[kernels.stratified(words, others.size)]]))


@dataclass(frozen=True, eq=False)
class _Places:
    """Coordinates by number."""

    places: NDArray[np.int64]

    def take(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x[self.places]

    def put(self, values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        out[self.places] = values
