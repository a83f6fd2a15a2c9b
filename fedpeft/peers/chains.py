"""The logs of all members in one epoch: what follows, what contradicts, and who is barred for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fedpeft.errors import PayloadError, Reason, RefusedError
from fedpeft.keys.signing import digest, verified, words
from fedpeft.peers.segment import Fork, Segment, beginning


class Taking(Enum):
    """What became of a segment."""

    NEW = "new"
    KNOWN = "known"
    AHEAD = "ahead"  # of what is held of its chain; kept nowhere, it comes again in its turn
    FORKED = "forked"  # it contradicts one that is held: its member is barred
    BARRED = "barred"  # it is at or after the place where its member forked


@dataclass
class _Chain:
    """Segments of a member and their links; `links[0]` is its beginning."""

    links: list[bytes]
    segments: list[Segment] = field(default_factory=list)

    def first(self, count: int) -> "_Chain":
        return _Chain(self.links[: count + 1], self.segments[:count])


class Chains:
    """The chains of an epoch.

    Nothing is held out of order, so memory is bounded by the limits; these are the run's and the same at all peers, so
    what one peer refuses, every other refuses too. What costs most is done last: a body is read only if it is signed by
    its member, and follows.

    Args:
        run: 32 bytes.
        epoch: from 1.
        root: hash of the cut before.
        keys: public keys of the members that may publish, by number.
        most_segments: of a member in an epoch.
        check: raises PayloadError for a body that the run does not allow.
    """

    def __init__(
        self,
        run: bytes,
        epoch: int,
        root: bytes,
        keys: Mapping[int, bytes],
        most_segments: int,
        check: Callable[[bytes], None],
    ) -> None:
        self.run, self.epoch, self.root = run, epoch, root
        self.keys, self.most_segments = dict(keys), most_segments
        self._check = check
        self._chains = {peer: _Chain([beginning(run, root, peer)]) for peer in sorted(keys)}
        self._branches: dict[int, list[_Chain]] = {}
        self.forks: dict[int, Fork] = {}

    def count(self, peer: int) -> int:
        """How many segments of a member are held; of somebody who may not publish here, none."""
        return len(self._chains[peer].segments) if peer in self._chains else 0

    def link(self, peer: int, number: int) -> bytes | None:
        """The link of a member's segment; of number 0, its beginning; None where that is not held."""
        links = self._chains[peer].links if peer in self._chains else []
        return links[number] if 0 <= number < len(links) else None

    def last(self, peer: int) -> bytes:
        """What a member's next segment is linked to."""
        return self._chains[peer].links[-1]

    def heads(self) -> dict[int, tuple[int, bytes]]:
        """Count and last link of each member that has published, by rising number."""
        return {peer: (len(chain.segments), chain.links[-1]) for peer, chain in self._chains.items() if chain.segments}

    def forked(self) -> dict[int, int]:
        """The lowest number at which each cheating member was proven to have forked; 0: in an epoch before."""
        return {peer: self._number(fork) for peer, fork in sorted(self.forks.items())}

    def segments(self, peer: int, first: int = 1, last: int | None = None) -> list[Segment]:
        """Segments of a member, by number, as far as they are held."""
        return self._chains[peer].segments[max(0, first - 1) : last] if peer in self._chains else []

    def bodies(self, peer: int, count: int, link: bytes) -> list[bytes] | None:
        """Bodies of a member's segments up to the one that has a link; None where they are not held.

        They are found on a branch too that was cut off when its member was barred: more than two thirds may have voted
        for it before they knew.
        """
        for chain in (self._chains[peer], *self._branches.get(peer, ())) if peer in self._chains else ():
            if 1 <= count < len(chain.links) and chain.links[count] == link:
                return [segment.body for segment in chain.segments[:count]]
        return None

    def digest(self) -> bytes:
        """A hash that two peers share if and only if they hold the same."""
        pieces = [words(peer, count) + link for peer, (count, link) in self.heads().items()]
        barred = [words(peer, number) for peer, number in self.forked().items()]
        return digest("heads", self.run, words(self.epoch), self.root, b"".join(pieces), b"".join(barred))

    def take(self, segment: Segment) -> Taking:
        """Add a segment where it follows what is held, or find that it contradicts it.

        Raises:
            RefusedError: it is of another epoch or of nobody here, breaks the run's limits, or is forged; nothing
                changes.
        """
        self._fits(segment)
        chain = self._chains[segment.peer]
        if segment.number > len(chain.segments) + 1:
            return Taking.AHEAD
        if segment.peer in self.forks and segment.number >= self._number(self.forks[segment.peer]):
            return Taking.BARRED
        previous = chain.links[segment.number - 1]
        held = chain.segments[segment.number - 1] if segment.number <= len(chain.segments) else None
        if held is not None and held.body == segment.body:
            return Taking.KNOWN
        link = segment.link(self.run, previous)
        if not verified(self.keys[segment.peer], link, segment.signature):
            raise RefusedError(
                Reason.BAD_PAYLOAD,
                f"segment {segment.number} of peer {segment.peer}: its signature is not of this body after the "
                "segments that are held; the chain was forged, or forked earlier",
            )
        self._read(segment)
        if held is not None:
            self.bar(Fork(previous, held, segment))
            return Taking.FORKED
        chain.segments.append(segment)
        chain.links.append(link)
        return Taking.NEW

    def bar(self, fork: Fork) -> bool:
        """Bar a member from where it forked, from the beginning if that was in an epoch before; whether that is news.

        The two segments themselves are in nobody's chain, so whichever of them a peer saw first, all end with the same.

        Raises:
            RefusedError: the fork proves nothing, or a body in it breaks the run's limits.
        """
        epoch, peer, number = fork.place
        if epoch > self.epoch or peer not in self._chains:
            raise RefusedError(Reason.OTHER_ROUND, f"a fork of peer {peer} in epoch {epoch}, here is {self.epoch}")
        if peer in self.forks and self._number(self.forks[peer]) <= self._number(fork):
            return False
        if not fork.proves(self.run, self.keys[peer]):
            raise RefusedError(Reason.BAD_PAYLOAD, f"a fork of peer {peer} at segment {number} that proves nothing")
        for segment in (fork.first, fork.second):
            self._numbered(segment)
            self._read(segment)
        self.forks[peer] = fork
        chain = self._chains[peer]
        count = max(0, self._number(fork) - 1)
        if len(chain.segments) > count:
            self._branches.setdefault(peer, []).append(chain)
            self._chains[peer] = chain.first(count)
        return True

    def _number(self, fork: Fork) -> int:
        return fork.place[2] if fork.place[0] == self.epoch else 0

    def _fits(self, segment: Segment) -> None:
        if segment.epoch != self.epoch:
            raise RefusedError(Reason.OTHER_ROUND, f"a segment of epoch {segment.epoch}, here is {self.epoch}")
        if segment.peer not in self._chains:
            raise RefusedError(Reason.POLICY, f"peer {segment.peer} is not on the roster, or is barred")
        self._numbered(segment)

    def _numbered(self, segment: Segment) -> None:
        if not 1 <= segment.number <= self.most_segments:
            raise RefusedError(
                Reason.POLICY,
                f"peer {segment.peer}: segment {segment.number}, where an epoch has {self.most_segments}",
            )

    def _read(self, segment: Segment) -> None:
        try:
            self._check(segment.body)
        except PayloadError as error:
            raise RefusedError(
                Reason.BAD_PAYLOAD, f"segment {segment.number} of peer {segment.peer}: {error}"
            ) from None
