"""What a member does between what it hears and what it publishes."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class Work(Protocol):
    """Makes bodies of segments from states of a ledger; only what is published has to be repeated by others.

    Attributes:
        live: a segment begins from all that is known of the open epoch; else from what the epoch began with.
    """

    live: bool

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        """The body of a segment.

        Args:
            state: that it begins from.
            epoch: from 1.
            peer: the member who publishes it.
            number: of the segment in its chain of the epoch, from 1.

        Raises:
            RunError: the training diverged.
        """
        ...

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """The adapter of a state, to be measured or saved."""
        ...
