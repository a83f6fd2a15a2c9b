"""A closed epoch in one piece, for whoever was not there: verified, or refused."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, IdentityError, PayloadError
from fedpeft.peers.cut import Certificate, Cut, Vote
from fedpeft.peers.roster import MOST_MEMBERS, Roster

_MOST_BESIDE = MOST_MEMBERS * (1 << 15)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What an epoch was closed with, the proof that it was, and the state after it.

    Args:
        certificate: the cut and the votes for it.
        roster: of the closed epoch.
        next: roster of the epoch after it.
        state: after the closed epoch.
    """

    certificate: Certificate
    roster: Roster
    next: Roster
    state: bytes

    @property
    def cut(self) -> Cut:
        """What was decided."""
        return self.certificate.cut

    def to_bytes(self) -> bytes:
        """As it is sent and kept; 10 bytes a member's head and 100 a vote are most of it, beside the deflated state."""
        message = pb.Snapshot(
            cut=self.cut.to_proto(),
            view=self.certificate.view,
            votes=[vote.to_proto() for vote in self.certificate.votes],
            roster=self.roster.to_proto(),
            next=None if self.next == self.roster else self.next.to_proto(),
            state=zlib.compress(self.state, 9),
        )
        return message.SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        run: bytes,
        organiser: bytes,
        least_serial: int,
        most_bytes: int,
        state_after: Callable[[Cut], bytes | None] = lambda cut: None,
    ) -> "Snapshot":
        """What came from somebody who need not be trusted.

        Args:
            data: the bytes.
            run: 32 bytes.
            organiser: public key of who signs rosters.
            least_serial: of the roster that is known here; older ones are not believed, since their members may have
                been dismissed.
            most_bytes: of a state.
            state_after: makes the state that a cut leads to, where the snapshot comes without.

        Raises:
            PayloadError: the bytes are no snapshot, or the state is not the one that was voted for.
            IdentityError: a roster is not the organiser's or is too old, or too few voted.
        """
        if len(data) > most_bytes + _MOST_BESIDE:
            raise PayloadError(Defect.TOO_LARGE, f"a snapshot of {len(data):,} bytes")
        try:
            message = pb.Snapshot.FromString(data)
        except DecodeError as error:
            raise PayloadError(Defect.MALFORMED, f"not a snapshot: {error}") from None
        cut = Cut.from_proto(message.cut, run)
        roster = Roster.from_proto(message.roster, run).check(organiser)
        following = Roster.from_proto(message.next, run).check(organiser) if message.HasField("next") else roster
        if following.serial < least_serial:
            raise IdentityError(f"a snapshot under roster {following.serial}, where {least_serial} is known here")
        if cut.roster != following.hash:
            raise IdentityError("a snapshot whose cut names another roster than it brings")
        if len(message.votes) > len(roster.members):
            raise PayloadError(Defect.COUNT, f"a snapshot with {len(message.votes)} votes of {len(roster.members)}")
        certificate = Certificate(cut, message.view, tuple(map(Vote.from_proto, message.votes))).check(roster)
        state = _inflated(message.state, most_bytes) if message.state else state_after(cut)
        if state is None:
            raise PayloadError(Defect.MISSING_PART, "a snapshot without its state, which cannot be made here")
        if hashlib.sha256(state).digest() != cut.state:
            raise PayloadError(Defect.CHECKSUM, "a snapshot's state is not the one that its cut names")
        return cls(certificate, roster, following, state)


def without_state(data: bytes) -> bytes:
    """A snapshot of one's own, for somebody who holds the closed epoch's segments."""
    message = pb.Snapshot.FromString(data)
    message.ClearField("state")
    return message.SerializeToString(deterministic=True)


def _inflated(data: bytes, most: int) -> bytes:
    """What was deflated, if it is no longer than it may be."""
    inflater = zlib.decompressobj()
    try:
        state = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise PayloadError(Defect.STREAM, f"a snapshot's state cannot be inflated: {error}") from None
    if len(state) > most or not inflater.eof or inflater.unused_data:
        raise PayloadError(Defect.TOO_LARGE, f"a snapshot's state does not end within {most:,} bytes")
    return state
