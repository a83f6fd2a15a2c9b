"""Which tensors are worked on where they lie, and the way of what is made of them to the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

_ANYWHERE: ContextVar[bool] = ContextVar("anywhere", default=False)


def holds(x: Tensor) -> bool:
    """Whether the kernels of this package shall work on a tensor: it lies on a CUDA device."""
    return x.is_cuda or _ANYWHERE.get()


@contextmanager
def anywhere() -> Iterator[None]:
    """Let the kernels of this package work on tensors of any device, the CPU among them.

    >>> with anywhere():
    ...     holds(torch.zeros(1))
    True
    """
    token = _ANYWHERE.set(True)
    try:
        yield
    finally:
        _ANYWHERE.reset(token)


def finite(delta: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """A delta as these kernels take it: contiguous float32, on its device.

    Raises:
        ValueError: a coordinate is infinite or NaN.
    """
    x = delta.detach().to(torch.float32).contiguous()
    good = torch.isfinite(x)
    if not good.all():
        raise ValueError(f"coordinate {int((~good).nonzero()[0])} of the delta is not finite")
    return x


def to_host(x: Shaped[Tensor, "..."]) -> NDArray[Any]:
    """A tensor as a numpy array."""
    array: NDArray[Any] = x.cpu().numpy()
    return array
