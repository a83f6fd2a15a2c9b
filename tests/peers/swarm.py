"""Peers for tests: keys, a roster, a ledger that only hashes, and a network between them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, FedpeftError, PayloadError
from fedpeft.keys.signing import SigningKey, digest
from fedpeft.peers.cut import Certificate, Cut, Kind, Vote
from fedpeft.peers.exchange import exchange
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member, Roster
from fedpeft.peers.segment import Fork, Segment, beginning
from fedpeft.peers.snapshot import Snapshot
from fedpeft.peers.store import MemoryStore, Store
from fedpeft.peers.terms import Terms
from fedpeft.runtime.simulated.network import Network

RUN = digest("test", b"a run")


@cache
def key(number: int) -> SigningKey:
    """The key of a member, the same in each test; 0 is the organiser's."""
    return SigningKey(number.to_bytes(32, "little"))


ORGANISER = key(0)


def terms(most_segments: int = 3, patience_s: float = 10.0, run: bytes = RUN) -> Terms:
    return Terms(run, ORGANISER.public, most_segments, patience_s)


def roster(numbers: Iterable[int], serial: int = 1, run: bytes = RUN) -> Roster:
    members = tuple(Member(number, f"peer-{number}", key(number).public) for number in sorted(numbers))
    return Roster(run, serial, members).signed(ORGANISER)


class HashLedger:
    """A state that is the hash of all that led to it; bodies are 1 to 32 bytes, of which the first is not "!"."""

    most_bytes, most_body = 32, 32

    def beginning(self) -> bytes:
        return bytes(32)

    def check(self, body: bytes) -> None:
        if not 1 <= len(body) <= self.most_body or body[:1] == b"!":
            raise PayloadError(Defect.SIZE, f"a body of {len(body)} bytes")

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        hashed = hashlib.sha256(state + epoch.to_bytes(4, "little"))
        assert list(bodies) == sorted(bodies)
        for peer, own in bodies.items():
            hashed.update(digest("bodies", peer.to_bytes(4, "little"), *own))
        return hashed.digest()


def chain(bodies: Sequence[bytes], peer: int, root: bytes, epoch: int = 1, previous: bytes = b"") -> list[Segment]:
    """Segments of a member, signed, one after the other."""
    previous, made = previous or beginning(RUN, root, peer), []
    for number, body in enumerate(bodies, 1):
        made.append(Segment(epoch, peer, number, body).signed(RUN, previous, key(peer)))
        previous = made[-1].link(RUN, previous)
    return made


def fork(peer: int, root: bytes, same: Sequence[bytes] = (), epoch: int = 1) -> Fork:
    """The proof that a member signed two segments after the same ones."""
    one, other = (chain([*same, body], peer, root, epoch) for body in (b"one", b"other"))
    previous = one[-2].link(RUN, beginning(RUN, root, peer)) if len(one) == 2 else beginning(RUN, root, peer)
    assert len(same) < 2
    return Fork(previous, one[-1], other[-1])


def decided(cut: Cut, voters: Iterable[int], view: int = 0) -> Certificate:
    """A certificate of members who voted to close with a cut."""
    votes = (Vote(cut.epoch, view, Kind.CLOSE, peer, cut.hash).signed(RUN, key(peer)) for peer in voters)
    return Certificate(cut, view, tuple(votes))


def closed(
    following: Roster, by: Roster, voters: Iterable[int], *, epoch: int = 1, before: bytes = b"", state: bytes = b""
) -> Snapshot:
    """A snapshot of an epoch with nothing in it."""
    before, state = before or terms().root(by.hash), state or bytes(32)
    cut = Cut(RUN, epoch, before, (), (), following.hash, hashlib.sha256(state).digest())
    return Snapshot(decided(cut, voters), by, following, state)


@dataclass
class Swarm:
    """Peers that know each other only by a network.

    Args:
        size: how many there are, numbered from 1.
        most_segments: of each in an epoch.
        seed: of the network.
        liars: members who have no peer.
    """

    size: int = 4
    most_segments: int = 3
    seed: int = 0
    liars: tuple[int, ...] = ()
    now: float = 0.0
    alarms: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.terms = terms(self.most_segments)
        self.roster = roster(range(1, self.size + 1))
        self.stores: dict[int, Store] = {}
        self.peers: dict[int, Peer] = {}
        self.network = Network(self.peers, self.seed)
        for number in range(1, self.size + 1):
            if number not in self.liars:
                self.start(number, MemoryStore())

    def start(self, number: int, store: Store, *, restored: bool = False, roster: Roster | None = None) -> Peer:
        self.stores[number] = store
        self.peers[number] = Peer(
            self.terms,
            key(number),
            roster or self.roster,
            HashLedger(),
            store,
            restored=restored,
            alarm=lambda text: self.alarms.append((number, text)),
        )
        return self.peers[number]

    def publish(self, number: int, body: bytes | None = None) -> Segment | None:
        peer = self.peers[number]
        place = peer.epoch, peer.chains.count(peer.number) + 1
        return peer.publish(body or f"{number}:{place}".encode(), *place)

    def exchange(self, caller: int, callee: int) -> bool:
        """Whether it came to its end."""
        try:
            exchange(self.peers[caller], callee, self.network.call(caller, callee))
        except FedpeftError:
            return False
        return True

    def all_exchange(self, numbers: Iterable[int] | None = None) -> None:
        numbers = sorted(self.peers) if numbers is None else list(numbers)
        for caller in numbers:
            for callee in numbers:
                if callee != caller:
                    self.exchange(caller, callee)

    def advance(self, seconds: float = 0.0, numbers: Iterable[int] | None = None) -> None:
        self.now += seconds
        for number in sorted(self.peers) if numbers is None else numbers:
            self.peers[number].advance(self.now)

    def meet(self, numbers: Iterable[int] | None = None) -> None:
        """Let all who are there compare what they hold, twice, so that all end with the same."""
        numbers = sorted(self.peers) if numbers is None else list(numbers)
        self.all_exchange(numbers)
        self.all_exchange(numbers)

    def close(self, numbers: Iterable[int] | None = None, rounds: int = 60) -> None:
        """Let time pass until the open epoch of the first is closed at all who are there.

        Raises:
            AssertionError: it does not come to that.
        """
        numbers = sorted(self.peers) if numbers is None else list(numbers)
        epoch = self.peers[numbers[0]].epoch
        for _ in range(rounds):
            self.advance(2.0, numbers)
            self.all_exchange(numbers)
            if all(self.peers[number].epoch > epoch for number in numbers):
                return
        raise AssertionError(f"epoch {epoch} is not closed: {[peer.closing.view for peer in self.peers.values()]}")

    def push(self, number: int, segments: Iterable[Segment]) -> int:
        """Give somebody segments; how many were new and right."""
        peer = self.peers[number]
        return peer.take(pb.Batch(run=RUN, epoch=peer.epoch, segments=[segment.to_proto() for segment in segments]))

    def same(self, numbers: Iterable[int] | None = None) -> bool:
        """Whether all hold the same and would go on from the same state."""
        peers = [self.peers[number] for number in numbers or self.peers]
        return len({(p.epoch, p.root, p.state, p.chains.digest(), p.current()) for p in peers}) == 1


def filled(size: int = 4, most_segments: int = 3, **more: object) -> Swarm:
    """A swarm in which all have met, and have published all that they may."""
    swarm = Swarm(size, most_segments, **more)  # type: ignore[arg-type]
    swarm.meet()
    for _ in range(most_segments):
        for number in swarm.peers:
            assert swarm.publish(number)
    return swarm
