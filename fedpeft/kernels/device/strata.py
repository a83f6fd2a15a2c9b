"""One number at random from each of k ranges of nearly equal length, on a device."""

import torch
from jaxtyping import Int
from torch import Tensor


def stratified(words: Int[Tensor, " w"], n: int) -> Int[Tensor, " k"]:
    """What `fedpeft.kernels.stratified` draws.

    Args:
        words: int64[2 k] in [0, 2^32).
        n: at least k, and k * n < 2^63.

    >>> stratified(torch.arange(8), 4).tolist()
    [0, 1, 2, 3]
    """
    low, high = words.view(-1, 2).unbind(dim=1)
    keys = low >> 1 | high << 31
    k = keys.numel()
    begins = torch.arange(k + 1, device=words.device) * n // max(k, 1)
    return begins[:-1] + keys % begins.diff()
