"""All clients' values of some coordinates at a time: what a rule reads that is no sum over clients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Context, Update, check
from fedpeft.ternary import TernaryDelta

_VALUES = 1 << 20  # of a block: 4 MiB
_WORD = 64


def columns(updates: Sequence[Update], ctx: Context) -> Iterator[tuple[slice, Float[Tensor, "n b"]]]:
    """Blocks of coordinates from the first to the last: which they are, and what each client has there, float32.

    Each update is decoded once and kept as it was sent: d / 4 bytes a client where it is ternary, and 4 d otherwise.

    Raises:
        ValueError: an update has another size, or its weight is not positive and finite.
    """
    held = []
    for update in updates:
        check([update], ctx)
        held.append(update.sent)
    step = max(1, _VALUES // (_WORD * len(held))) * _WORD
    for begin in range(0, ctx.space.numel, step):
        end = min(begin + step, ctx.space.numel)
        yield slice(begin, end), torch.stack([_part(sent, begin, end) for sent in held])


def _part(sent: Float[Tensor, " d"] | TernaryDelta, begin: int, end: int) -> Float[Tensor, " b"]:
    if not isinstance(sent, TernaryDelta):
        return sent[begin:end]
    words = slice(begin // _WORD, -(-end // _WORD))
    bounds = np.clip(sent.bounds, begin, end) - begin
    return replace(sent, mask=sent.mask[words], negative=sent.negative[words], bounds=bounds).dense()
