"""Which of two sums of votes is ahead: rounding, which depends on the unit of the weights, decides nothing."""

from jaxtyping import Float
from torch import Tensor

# Each step of a float64 sum rounds by at most 2^-53 of what it has summed: 1e-12 is 9000 steps that all err one way.
# Votes that are whole numbers differ by more, unless there are 10^12 of them.
TIE = 1e-12


def lead(plus: Float[Tensor, " d"], minus: Float[Tensor, "..."] | float) -> Float[Tensor, " d"]:
    """Their difference, and 0 where it is no more than rounding: neither side is ahead.

    >>> import torch
    >>> lead(torch.tensor([0.1 + 0.2, 3.0]).double(), torch.tensor([0.3, 1.0]).double())
    tensor([0., 2.], dtype=torch.float64)

    Args:
        plus: sums of what is at least 0, in float64.
        minus: likewise; one number stands for as many.
    """
    found = plus - minus
    return found.masked_fill_(found.abs() < (plus + minus).mul_(TIE), 0.0)
