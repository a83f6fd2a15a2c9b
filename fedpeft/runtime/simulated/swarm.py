"""Many peers in one process, over a network that may fail: the real exchange, the real bytes, one clock."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedpeft.errors import FedpeftError, RunError
from fedpeft.keys.signing import SigningKey, digest
from fedpeft.peers.exchange import exchange
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member, Roster
from fedpeft.peers.store import MemoryStore
from fedpeft.peers.terms import Terms
from fedpeft.peers.work import Work
from fedpeft.random import Purpose, Stream
from fedpeft.runtime.simulated.network import Network, Weather

_KEPT = 8  # states
_LONGEST = 10_000  # rounds of exchange


@dataclass(frozen=True)
class Conditions:
    """What peers are simulated under.

    Args:
        near: the neighbours of each, by number from 1.
        seed: of keys, of who meets whom, and of all that goes wrong.
        weather: of the network.
        split: for so many rounds of exchange, from the first, two halves cannot reach each other.
        most_segments: of a member in an epoch.
        patience: rounds of exchange that an epoch waits for members who have not done their part.
    """

    near: Mapping[int, Sequence[int]]
    seed: int = 0
    weather: Weather = field(default_factory=Weather)
    split: int = 0
    most_segments: int = 1
    patience: float = 60.0


class Once:
    """A ledger that reads each body and folds each cut once, for all peers of a process that share it.

    A ledger's answers depend on its arguments alone, so those are the answers that each peer would come to.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.most_bytes, self.most_body = ledger.most_bytes, ledger.most_body
        self._right: dict[bytes, None] = {}
        self._states: dict[bytes, bytes] = {}

    def beginning(self) -> bytes:
        """The state before the first epoch."""
        return self._ledger.beginning()

    def check(self, body: bytes) -> None:
        """See that a body is allowed."""
        key = hashlib.sha256(body).digest()
        if key not in self._right:
            self._ledger.check(body)
            self._right[key] = None

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        """The state after an epoch, or within one."""
        theirs = (digest("of", bytes([peer & 255, peer >> 8]), *some) for peer, some in sorted(bodies.items()))
        key = digest("fold", state, epoch.to_bytes(4, "little"), *theirs)
        if key not in self._states:
            self._states[key] = self._ledger.fold(state, epoch, bodies)
            for old in list(self._states)[:-_KEPT]:
                del self._states[old]
        return self._states[key]


class Swarm:
    """Peers that begin together, each with its own work.

    In a round every peer publishes one segment if it has one to publish, then meets one of its neighbours, drawn at
    random, and says what there is to say about closing the epoch. A round is a second of their clock.

    Args:
        ledger: what bodies mean.
        works: of the peers, from 1.
        conditions: of the simulation.
        run: 32 bytes.
    """

    def __init__(self, ledger: Ledger, works: Sequence[Work], conditions: Conditions, run: bytes) -> None:
        self._works = dict(enumerate(works, 1))
        self._conditions, self.rounds = conditions, 0
        organiser, *keys = (_key(conditions.seed, number) for number in range(len(works) + 1))
        members = tuple(Member(number, f"peer-{number}", key.public) for number, key in enumerate(keys, 1))
        roster = Roster(run, 1, members).signed(organiser)
        terms = Terms(run, organiser.public, conditions.most_segments, conditions.patience)
        shared = Once(ledger)
        self.alarms: list[str] = []
        self.peers = {
            number: Peer(terms, key, roster, shared, MemoryStore(), alarm=self.alarms.append)
            for number, key in enumerate(keys, 1)
        }
        for peer in self.peers.values():  # all begin at once, so nobody can have forgotten what it published
            for number in self.peers:
                peer.heard_from(number)
        self.network = Network(self.peers, conditions.seed, conditions.weather)
        if conditions.split:
            half = len(works) // 2
            self.network.split([range(1, half + 1), range(half + 1, len(works) + 1)])

    def epochs(self, count: int) -> Iterator[int]:
        """Take part until so many epochs are closed everywhere; yields the number of each.

        Raises:
            RunError: an epoch does not close, though rounds go on.
        """
        for epoch in range(1, count + 1):
            until = self.rounds + _LONGEST
            while min(peer.epoch for peer in self.peers.values()) <= epoch:
                if self.rounds >= until:
                    raise RunError(f"epoch {epoch} was not closed by all peers within {_LONGEST} rounds of exchange")
                self.round(epoch)
            yield epoch

    def round(self, last: int) -> None:
        """One round of exchange; no epoch after the last is worked for."""
        self.rounds += 1
        if self.rounds == self._conditions.split + 1:
            self.network.heal()
        for number, peer in self.peers.items():
            if peer.epoch <= last and peer.may_speak() and not peer.done():
                self._publish(number, peer)
        meetings = Stream(self._conditions.seed, Purpose.TOPOLOGY, self.rounds, part=2)
        order, picks = meetings.permutation(len(self.peers)).tolist(), meetings.words(len(self.peers), 1 << 20).tolist()
        for index, pick in zip(order, picks, strict=True):
            self._meet(index + 1, pick)
        for peer in self.peers.values():
            if peer.epoch <= last:
                peer.advance(float(self.rounds))

    def states(self) -> Counter[bytes]:
        """How many peers hold each state."""
        return Counter(peer.state for peer in self.peers.values())

    def _publish(self, number: int, peer: Peer) -> None:
        epoch, work = peer.epoch, self._works[number]
        place = peer.chains.count(number) + 1
        state = peer.current() if work.live else peer.state
        peer.publish(work.segment(state, epoch, number, place), epoch, place)

    def _meet(self, number: int, pick: int) -> None:
        near = self._conditions.near[number]
        if near:
            other = near[pick % len(near)]
            try:
                exchange(self.peers[number], other, self.network.call(number, other))
            except FedpeftError:  # lost or damaged on the way; what was right of it was taken
                return


def _key(seed: int, number: int) -> SigningKey:
    return SigningKey(digest("simulated", seed.to_bytes(16, "little", signed=True), number.to_bytes(4, "little")))
