"""What a running peer does beside comparing with others: the one thing in which its modes differ."""

from typing import Protocol

from fedpeft._proto import peer_pb2 as pb


class Course(Protocol):
    """When a peer trains and publishes, for whom it waits, and when it is over.

    Attributes:
        votes: epochs are closed by votes, cast on a thread of their own. What is new wakes that thread; where there is
            none, the one that trains.
    """

    votes: bool

    def over(self) -> bool:
        """Whether all is done that there was to do."""
        ...

    def waits_for(self) -> str:
        """What this peer waits for at the moment; "" where there is something to do. Any thread may ask."""
        ...

    def turn(self) -> pb.Batch | None:
        """Do the next thing that there is to do, on the thread that trains.

        Returns:
            What others are to be told of it; None where there was nothing to do.

        Raises:
            RunError: it cannot go on.
        """
        ...

    def vote(self, now: float) -> pb.Batch:
        """Say what there is to say about closing an epoch, on the thread that votes; what was said, for others.

        Args:
            now: seconds of a clock that only rises.
        """
        ...
