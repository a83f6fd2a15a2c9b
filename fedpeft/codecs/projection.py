"""What codecs share that send a delta's products with directions which both ends draw from a stream."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import (
    LARGEST,
    ROUNDING,
    Codec,
    Context,
    Field,
    Layout,
    Numbers,
    Parts,
    Sketch,
    Symbols,
    finite,
    take,
)
from fedpeft.errors import Defect, PayloadError
from fedpeft.random import Stream
from fedpeft.space import Space


@dataclass(frozen=True)
class Projection(Codec):
    """K products of a delta with directions that no client draws for itself, so that products of clients add up.

    Args:
        coordinates: K, at most the size of the space; or
        density: K as a share of the space, in (0, 1].
        scale: "mean" gives back the vector that is nearest on average, "unbiased" one whose mean over streams is the
            delta.
        dtype: how a product is sent: "float32", which may be summed as it is; "float16", or "logbyte" (`LogByte`),
            with one scale beside them all.
        directions: new ones in every "round", or the same for the whole "run".
    """

    coordinates: int | None = None
    density: float | None = None
    scale: Literal["mean", "unbiased"] = "mean"
    dtype: Literal["float32", "float16", "logbyte"] = "float32"
    directions: Literal["round", "run"] = "round"

    def __post_init__(self) -> None:
        if (self.coordinates is None) == (self.density is None):
            raise ValueError(f"give either coordinates or density, got {self.coordinates} and {self.density}")
        if self.coordinates is not None and (type(self.coordinates) is not int or self.coordinates < 1):
            raise ValueError(f"coordinates must be an integer of at least 1, got {self.coordinates!r}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        for name, value, choices in (
            ("scale", self.scale, ("mean", "unbiased")),
            ("dtype", self.dtype, ("float32", "float16", "logbyte")),
            ("directions", self.directions, ("round", "run")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether products are sent whole."""
        return self.dtype == "float32"

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether the mean over rounds is the delta: of products that are rounded, it is not quite."""
        return self.scale == "unbiased" and self.dtype == "float32" and self.directions == "round"

    def layout(self, space: Space) -> Layout:
        """The products, and their largest magnitude where they are rounded."""
        k = self._count(space.numel)
        match self.dtype:
            case "float32":
                return {"product": Field("numbers", k)}
            case "float16":
                return {"product": Field("numbers", k, dtype="float16"), "scale": Field("numbers", 1)}
            case "logbyte":
                return {"product": Field("symbols", k, levels=len(kernels.LEVELS)), "scale": Field("numbers", 1)}

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Multiply with every direction."""
        y = self._measure(delta, self._count(space.numel), self._stream(ctx))
        if not _moderate(y, space.numel):
            raise ValueError(
                f"products with directions are too large for float32; the delta's norm is {delta.norm():g}"
            )
        y = y.astype(np.float32, copy=False)
        match self.dtype:
            case "float32":
                return {"product": Numbers(y)}
            case "float16":
                largest = np.abs(y).max(initial=0).reshape(1)
                shrunk = y / (largest if largest[0] > 0 else np.float32(1))
                return {"product": Numbers(shrunk.astype(np.float16)), "scale": Numbers(largest)}
            case "logbyte":
                codes, size = kernels.log_codes(y)
                return {"product": Symbols(codes, len(kernels.LEVELS)), "scale": Numbers(np.array([size]))}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The sum of all directions, each times its product.

        Raises:
            PayloadError: the sum may be beyond float32.
        """
        sketch = self.sketch(space, ctx)
        return sketch.spread(sketch.values(parts))

    def sketch(self, space: Space, ctx: Context) -> Sketch:
        """The products as they came, rounded or not, then the sum of directions."""
        d, stream = space.numel, self._stream(ctx)
        return Sketch(
            key=(repr(self), space.fingerprint, stream),
            values=lambda parts: self._products(parts, d),
            spread=lambda y: torch.from_numpy(self._combine(y, d, stream)),
            longest=lambda y: ROUNDING * self._longest(y.astype(np.float64), d),
        )

    def _measure(self, delta: Float[Tensor, " d"], k: int, stream: Stream) -> NDArray[np.floating]:
        """`_project` of a delta, wherever that lies."""
        return self._project(finite(delta), k, stream)

    @abstractmethod
    def _project(self, x: NDArray[np.float32], k: int, stream: Stream) -> NDArray[np.floating]:
        """Products with directions of norm about 1: k numbers from float32[d]."""

    @abstractmethod
    def _combine(self, y: NDArray[np.float32], d: int, stream: Stream) -> NDArray[np.float32]:
        """The vector that products stand for: float32[d] from float32[k]."""

    @abstractmethod
    def _longest(self, y: NDArray[np.float64], d: int) -> float:
        """A bound on the norm of what `_combine` gives, but for rounding."""

    def _count(self, d: int) -> int:
        wanted = self.coordinates if self.density is None else max(1, round(self.density * d))
        return min(d, wanted or d)

    def _stream(self, ctx: Context) -> Stream:
        # Rounds count from 1, so that no round has the stream of the run.
        return ctx.shared if self.directions == "round" else replace(ctx, round=0).shared

    def _products(self, parts: Parts, d: int) -> NDArray[np.float32]:
        y = self._widened(parts)
        if not _moderate(y, d):
            raise PayloadError(Defect.NON_FINITE, f"{y.size} products of {np.abs(y).max():g} may sum to infinity")
        return y.astype(np.float32)

    def _widened(self, parts: Parts) -> NDArray[np.floating]:
        if self.dtype == "float32":
            return take(parts, "product", Numbers).values
        size = take(parts, "scale", Numbers).values.astype(np.float64)
        if self.dtype == "float16":
            return take(parts, "product", Numbers).values * size
        return kernels.LEVELS[take(parts, "product", Symbols).values] * size


def _moderate(y: NDArray[np.floating], d: int) -> bool:
    """Whether no sum of products of `y` with directions of `d` numbers can leave float32; never so if one is NaN."""
    return float(np.abs(y).sum(dtype=np.float64)) * max(1, d) <= LARGEST
