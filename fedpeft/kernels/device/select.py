"""Exact selection by magnitude, without sorting: a count for each bit of an IEEE float."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAGNITUDE = 0x7FFFFFFF


def magnitudes(x: Float[Tensor, "m n"]) -> Int[Tensor, "m n"]:
    """The bits of |x| as int32, which are ordered as |x| is."""
    return x.view(torch.int32) & MAGNITUDE


def kth_magnitude(magnitude: Int[Tensor, "m n"], k: Int[Tensor, "m 1"]) -> Int[Tensor, "m 1"]:
    """The k-th largest magnitude of each row, built from its highest bit down.

    Args:
        magnitude: int32, as `magnitudes` gives it.
        k: 1 to n.

    >>> kth_magnitude(torch.tensor([[1, 7, 3, 3]], dtype=torch.int32), torch.tensor([[3]]))
    tensor([[3]], dtype=torch.int32)
    """
    least = torch.zeros_like(k, dtype=torch.int32)
    for bit in range(30, -1, -1):
        trial = least | 1 << bit
        least = torch.where((magnitude >= trial).sum(dim=1, keepdim=True) >= k, trial, least)
    return least
