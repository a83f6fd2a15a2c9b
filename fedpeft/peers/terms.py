"""What all peers of a run have agreed on."""

from dataclasses import dataclass

from fedpeft.keys.signing import digest


@dataclass(frozen=True)
class Terms:
    """What all peers of a run have agreed on.

    Args:
        run: hash of the run's description, 32 bytes.
        organiser: public key of who signs rosters.
        most_segments: of a member in an epoch; with so many, its part of the epoch is done.
        patience_s: seconds that an epoch waits for members who have not done their part, and the closing for messages.
    """

    run: bytes
    organiser: bytes
    most_segments: int = 16
    patience_s: float = 60.0

    def root(self, roster: bytes) -> bytes:
        """What stands for the cut before the first epoch: those who begin with different rosters begin different runs.

        Args:
            roster: hash of the roster that the run begins with.
        """
        return digest("run", self.run, self.organiser, roster)
