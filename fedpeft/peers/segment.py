"""What a member publishes, linked by hashes and signed; and the proof that it published two for one."""

from dataclasses import dataclass
from functools import cached_property

from fedpeft._proto import peer_pb2 as pb
from fedpeft.keys.signing import HASH_BYTES, SigningKey, digest, verified, words


def beginning(run: bytes, root: bytes, peer: int) -> bytes:
    """What the first segment of a member's chain is linked to, in the epoch after the cut of hash `root`."""
    return digest("chain", run, root, words(peer))


@dataclass(frozen=True)
class Segment:
    """A piece of a member's log.

    Args:
        epoch: from 1.
        peer: the member's number.
        number: in its chain of this epoch, from 1.
        body: what is published, at least one byte.
        signature: of `link`, which makes it follow all segments before it.
    """

    epoch: int
    peer: int
    number: int
    body: bytes
    signature: bytes = b""

    def link(self, run: bytes, previous: bytes) -> bytes:
        """The hash that is signed, and that the next segment is linked to.

        Args:
            run: 32 bytes.
            previous: link of the segment before; of the first, `beginning`.
        """
        place = words(self.epoch, self.peer, self.number)
        return digest("segment", run, place, previous, self.body)

    def signed(self, run: bytes, previous: bytes, key: SigningKey) -> "Segment":
        """The same with its member's signature."""
        signature = key.sign(self.link(run, previous))
        return Segment(self.epoch, self.peer, self.number, self.body, signature)

    def to_proto(self) -> pb.Segment:
        """As a message."""
        return pb.Segment(
            epoch=self.epoch, peer=self.peer, number=self.number, body=self.body, signature=self.signature
        )

    @classmethod
    def from_proto(cls, message: pb.Segment) -> "Segment":
        """What came in a message."""
        return cls(message.epoch, message.peer, message.number, message.body, message.signature)


@dataclass(frozen=True)
class Fork:
    """Two segments of one member under one number, after the same one before: whoever has its key can check it.

    Args:
        previous: link of the segment before both.
        first: the one.
        second: the other, of another body.
    """

    previous: bytes
    first: Segment
    second: Segment

    @cached_property
    def place(self) -> tuple[int, int, int]:
        """Epoch, member and number of both."""
        return self.first.epoch, self.first.peer, self.first.number

    def proves(self, run: bytes, key: bytes) -> bool:
        """Whether the member whose public key this is signed both."""
        other = self.second.epoch, self.second.peer, self.second.number
        return (
            other == self.place
            and len(self.previous) == HASH_BYTES
            and self.first.body != self.second.body
            and all(verified(key, s.link(run, self.previous), s.signature) for s in (self.first, self.second))
        )

    def to_proto(self) -> pb.Fork:
        """As a message."""
        epoch, peer, number = self.place
        both = (self.first, self.second)
        return pb.Fork(
            epoch=epoch,
            peer=peer,
            number=number,
            previous=self.previous,
            bodies=[segment.body for segment in both],
            signatures=[segment.signature for segment in both],
        )

    @classmethod
    def from_proto(cls, message: pb.Fork) -> "Fork":
        """What came in a message; of one that does not hold two segments, a fork that proves nothing."""
        bodies, signatures = [*message.bodies, b"", b""], [*message.signatures, b"", b""]
        first, second = (
            Segment(message.epoch, message.peer, message.number, bodies[i], signatures[i]) for i in range(2)
        )
        return cls(message.previous, first, second)
