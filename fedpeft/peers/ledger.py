"""What the bodies of segments mean: the one thing that scalars and deltas differ in."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Ledger(Protocol):
    """A state of bytes that epochs take further; the same segments give the same bytes at every peer.

    Attributes:
        most_bytes: of a state.
        most_body: bytes of a segment's body.
    """

    most_bytes: int
    most_body: int

    def beginning(self) -> bytes:
        """The state before the first epoch."""
        ...

    def check(self, body: bytes) -> None:
        """See that a body is allowed.

        Raises:
            PayloadError: it is not, at any peer.
        """
        ...

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        """The state after an epoch, or within one.

        Args:
            state: before it.
            epoch: from 1.
            bodies: of each member's segments, in their order; members rise.
        """
        ...
