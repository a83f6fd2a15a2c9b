"""What an epoch ends with, who voted for it, and when that is enough."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, IdentityError, PayloadError
from fedpeft.keys.signing import HASH_BYTES, SigningKey, digest, verified, words
from fedpeft.peers.roster import Roster


def quorum(members: int) -> int:
    """The fewest votes that are more than two thirds.

    >>> [quorum(n) for n in (1, 2, 3, 4, 7)]
    [1, 2, 3, 3, 5]
    """
    return 2 * members // 3 + 1


@dataclass(frozen=True)
class Cut:
    """What an epoch ends with: which segments count, and what they lead to.

    Args:
        run: 32 bytes.
        epoch: that it closes, from 1.
        before: hash of the cut before; of the first epoch's, the run's beginning.
        heads: (member, how many of its segments count, link of the last), by member; who published nothing is left out.
        barred: members that were proven to cheat, in this epoch or before.
        roster: hash of the roster of the next epoch.
        state: hash of the state after it.
    """

    run: bytes
    epoch: int
    before: bytes
    heads: tuple[tuple[int, int, bytes], ...]
    barred: tuple[int, ...]
    roster: bytes
    state: bytes

    @cached_property
    def hash(self) -> bytes:
        """What is voted for."""
        heads = b"".join(words(peer, count) + link for peer, count, link in self.heads)
        return digest(
            "cut", self.run, words(self.epoch), self.before, heads, words(*self.barred), self.roster, self.state
        )

    def to_proto(self) -> pb.Cut:
        """As a message."""
        return pb.Cut(
            epoch=self.epoch,
            before=self.before,
            heads=[pb.Head(peer=peer, count=count, hash=link) for peer, count, link in self.heads],
            barred=self.barred,
            roster=self.roster,
            state=self.state,
        )

    @classmethod
    def from_proto(cls, message: pb.Cut, run: bytes) -> "Cut":
        """What came in a message.

        Raises:
            PayloadError: members are not in order, or a hash has another size.
        """
        heads = tuple((head.peer, head.count, head.hash) for head in message.heads)
        for peers in ([peer for peer, _, _ in heads], list(message.barred)):
            if peers != sorted(set(peers)):
                raise PayloadError(Defect.MALFORMED, f"a cut names members out of order: {peers[:8]}")
        hashes = [message.before, message.roster, message.state, *(link for _, _, link in heads)]
        if any(len(value) != HASH_BYTES for value in hashes) or any(count < 1 for _, count, _ in heads):
            raise PayloadError(Defect.MALFORMED, "a cut with an empty head, or a hash that is none")
        return cls(run, message.epoch, message.before, heads, tuple(message.barred), message.roster, message.state)


class Kind(IntEnum):
    """What a vote says."""

    FOR = 1  # "prevote": this cut is right
    CLOSE = 2  # "precommit": more than two thirds voted for it; I will vote for no other


@dataclass(frozen=True)
class Vote:
    """A member's vote in one view of an epoch; of each kind it has one in a view.

    Args:
        epoch: from 1.
        view: attempt at closing the epoch, from 0.
        kind: FOR or CLOSE.
        peer: the member.
        cut: hash; b"": for none.
        signature: by the member.
    """

    epoch: int
    view: int
    kind: Kind
    peer: int
    cut: bytes
    signature: bytes = b""

    def hash(self, run: bytes) -> bytes:
        """What is signed."""
        return digest("vote", run, words(self.epoch, self.view, self.kind, self.peer), self.cut)

    def signed(self, run: bytes, key: SigningKey) -> "Vote":
        """The same with its member's signature."""
        return replace(self, signature=key.sign(self.hash(run)))

    def to_proto(self) -> pb.Vote:
        """As a message."""
        return pb.Vote(
            epoch=self.epoch, view=self.view, kind=self.kind, peer=self.peer, cut=self.cut, signature=self.signature
        )

    @classmethod
    def from_proto(cls, message: pb.Vote) -> "Vote":
        """What came in a message.

        Raises:
            PayloadError: it is no vote.
        """
        if message.kind not in (Kind.FOR, Kind.CLOSE) or len(message.cut) not in (0, HASH_BYTES):
            raise PayloadError(Defect.MALFORMED, f"a vote of kind {message.kind} for {len(message.cut)} bytes")
        return cls(message.epoch, message.view, Kind(message.kind), message.peer, message.cut, message.signature)


@dataclass(frozen=True)
class Proposal:
    """A cut that the proposer of a view puts to the vote.

    Args:
        view: from 0.
        valid_view: the view in which enough voted for it already; -1 where it is new.
        cut: what is proposed.
        signature: by the view's proposer.
    """

    view: int
    valid_view: int
    cut: Cut
    signature: bytes = b""

    def hash(self) -> bytes:
        """What is signed."""
        return digest("proposal", self.cut.run, words(self.view, self.valid_view + 1), self.cut.hash)

    def signed(self, key: SigningKey) -> "Proposal":
        """The same with its proposer's signature."""
        return replace(self, signature=key.sign(self.hash()))

    def to_proto(self) -> pb.Proposal:
        """As a message."""
        return pb.Proposal(
            view=self.view, valid_view=self.valid_view + 1, cut=self.cut.to_proto(), signature=self.signature
        )

    @classmethod
    def from_proto(cls, message: pb.Proposal, run: bytes) -> "Proposal":
        """What came in a message.

        Raises:
            PayloadError: its cut is malformed.
        """
        return cls(message.view, message.valid_view - 1, Cut.from_proto(message.cut, run), message.signature)


@dataclass(frozen=True)
class Certificate:
    """Votes to close an epoch with a cut, of more than two thirds of those who could vote.

    Args:
        cut: that was decided.
        view: in which.
        votes: of kind CLOSE, for that cut.
    """

    cut: Cut
    view: int
    votes: tuple[Vote, ...]

    def check(self, roster: Roster) -> "Certificate":
        """Itself, if enough members of the closed epoch's roster voted so.

        Raises:
            IdentityError: too few of them did.
        """
        voters = {number: member.key for number, member in roster.by_number.items()}
        counted = {vote.peer for vote in self.votes if self._counts(vote, voters)}
        if len(counted) < quorum(len(voters)):
            raise IdentityError(
                f"the cut of epoch {self.cut.epoch}: {len(counted)} of {len(voters)} members signed it, expected at "
                f"least {quorum(len(voters))}; ask another peer"
            )
        return self

    def _counts(self, vote: Vote, voters: Mapping[int, bytes]) -> bool:
        told = vote.epoch, vote.view, vote.kind, vote.cut
        return (
            told == (self.cut.epoch, self.view, Kind.CLOSE, self.cut.hash)
            and vote.peer in voters
            and verified(voters[vote.peer], vote.hash(self.cut.run), vote.signature)
        )
