"""The delta as it is, in one of three floating-point types."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, take
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space

_STORED = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


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
        rounded = delta.detach().cpu().to(getattr(torch, self.dtype))
        if not torch.isfinite(rounded).all():
            i = int((~torch.isfinite(rounded)).nonzero()[0])
            raise ValueError(f"coordinate {i} is {float(delta[i])}, beyond the range of {self.dtype}")
        stored = rounded.view(torch.uint16) if self.dtype == "bfloat16" else rounded
        return {"values": Numbers(stored.numpy())}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Widen to float32.

        Raises:
            PayloadError: a bfloat16 is not finite (the wire, to which it is an integer, cannot tell).
        """
        values = take(parts, "values", Numbers).values
        if self.dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
            if not np.isfinite(values).all():
                raise PayloadError(Defect.NON_FINITE, "the 16 bits of a bfloat16 stand for infinity or NaN")
        return torch.from_numpy(values.astype(np.float32))
