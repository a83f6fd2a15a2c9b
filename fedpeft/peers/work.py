"""What a member does between what it hears and what it publishes."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor


class Work(Protocol):
    """Makes bodies of segments from states of a ledger; only what is published has to be repeated by others."""

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        """The body of a segment.

        Args:
            state: with all that is known of the epoch.
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
