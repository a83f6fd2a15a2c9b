"""The delta as it is, in one of three floating-point types."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, take
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space

_STORED = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
_BLOCK = 1 << 18  # numbers that are widened while they are in the processor's cache


@dataclass(frozen=True)
class Identity(Codec):
    """Every number of the delta, rounded to `dtype`.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (2,), "head"),)), Context()
    >>> codec = Identity("bfloat16")
    >>> codec.decode(codec.encode(torch.tensor([0.5, -3.0]), space, ctx), space, ctx)
    tensor([ 0.5000, -3.0000])

    Raises:
        ValueError: `dtype` is another one; on encode, a number is beyond the type's range.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _STORED:
            raise ValueError(f"dtype must be one of {', '.join(_STORED)}, got {self.dtype!r}")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether what is sent may be summed as it is: only float32, which nothing is rounded to."""
        return self.dtype == "float32"

    def layout(self, space: Space) -> Layout:
        """One part of numbers; bfloat16, which numpy lacks, travels as its 16 bits."""
        return {"values": Field("numbers", space.numel, dtype=_STORED[self.dtype])}

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Round to nearest even."""
        exact = self.dtype == "float32"
        rounded = delta.detach().cpu().float() if exact else _empty(delta.numel(), self.dtype).copy_(delta.detach())
        if rounded.numel() and not all(math.isfinite(end) for end in torch.aminmax(rounded)):
            i = int((~torch.isfinite(rounded)).nonzero()[0])
            raise ValueError(f"coordinate {i} is {float(delta[i])}, beyond the range of {self.dtype}")
        stored = rounded.view(torch.uint16) if self.dtype == "bfloat16" else rounded
        return {"values": Numbers(stored.numpy())}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Widen to float32.

        Raises:
            PayloadError: a bfloat16 is not finite (the wire, to which it is an integer, cannot tell).
        """
        stored = take(parts, "values", Numbers).lent
        vector = _empty(stored.size, "float32")
        out = vector.numpy()
        for begin in range(0, stored.size, _BLOCK):
            block = slice(begin, begin + _BLOCK)
            if self.dtype == "float32":
                out[block] = stored[block]
            else:
                aligned = torch.from_numpy(stored[block].astype(_STORED[self.dtype]))
                vector[block] = aligned.view(getattr(torch, self.dtype))
        if self.dtype == "bfloat16" and not kernels.all_finite(out):
            raise PayloadError(Defect.NON_FINITE, "the 16 bits of a bfloat16 stand for infinity or NaN")
        return vector


def _empty(numel: int, dtype: str) -> Tensor:
    """A vector to be filled: numpy, unlike torch, asks for large pages, without which new memory costs most of all."""
    return torch.from_numpy(np.empty(numel, _STORED[dtype])).view(getattr(torch, dtype))
