"""The words of a stream, drawn on the device that needs them."""

import torch
from jaxtyping import Int
from torch import Tensor

from fedpeft.random import Stream, philox_torch


def stream_words(stream: Stream, n: int, start: int, device: torch.device) -> Int[Tensor, " n"]:
    """What `stream.words(n, start)` gives, as int64 numbers on a device."""
    counter = stream.round, stream.client, stream.purpose | stream.part << 8
    return philox_torch(stream.key, counter, start, n, device)
