"""What strategies draw random words for: each use has a part of its own, so that none sees another's."""

from enum import IntEnum

from fedpeft.random import Purpose, Stream
from fedpeft.strategies.base import Context


class Part(IntEnum):
    """One use."""

    DARE = 1
    DARE_SHARED = 2
    DELLA = 3
    SUBSPACE = 4
    PROBES = 5


def stream_of(ctx: Context, part: Part, number: int = 0) -> Stream:
    """The words of one use in a round.

    Args:
        ctx: says of which run and round.
        part: what for.
        number: tells draws of one use apart, in [0, 2^32).
    """
    return Stream(ctx.seed, Purpose.STRATEGY, ctx.round, number, part)
