"""Rankings: the order of the numbers in each slot of an adapter, and the scores that stand for one."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedpeft.space import Space


def order(values: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Where the numbers stand, the least first; of equal ones the first first.

    >>> order(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist()
    [1, 3, 0, 2]
    """
    return torch.argsort(values, stable=True)


def ranks(vector: Float[Tensor, " d"], space: Space) -> Float[Tensor, " d"]:
    """Each number's place in the order of its slot, from 0 for the least, in float64."""
    out = torch.empty(space.numel, dtype=torch.float64)
    for begin, end in pairwise(space.bounds):
        out[begin:end][order(vector[begin:end])] = torch.arange(end - begin, dtype=torch.float64)
    return out


def scores(placed: Float[Tensor, " d"], space: Space) -> Float[Tensor, " d"]:
    """The same score for the same place whatever was ranked: (2 rank + 1) / size - 1 in each slot, float32.

    They lie evenly in (-1, 1), closest to zero around the median, where fp16 tells most of them apart.

    Args:
        placed: numbers whose order in each slot is the ranking.
        space: of both.
    """
    sizes = torch.tensor([slot.numel for slot in space.slots])
    each = torch.repeat_interleave(sizes, sizes).double()
    return ((2 * ranks(placed, space) + 1) / each - 1).float()
