"""Peers that gossip, for tests: no network that is real, one clock, and a trainer that takes no time."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from fedpeft._proto import peer_pb2 as pb
from fedpeft.codecs import Ternary
from fedpeft.errors import FedpeftError
from fedpeft.peers.exchange import exchange
from fedpeft.peers.gossip import Circle, Manner, Step, metropolis
from fedpeft.peers.gossip_ledger import GossipLedger
from fedpeft.peers.gossip_work import GossipWork
from fedpeft.peers.hearing import Hearing
from fedpeft.peers.peer import Peer
from fedpeft.peers.store import MemoryStore
from fedpeft.runtime.peer.gossip_course import GossipCourse
from fedpeft.runtime.peer.topology import among
from fedpeft.runtime.simulated.gossip import Gossip
from fedpeft.runtime.simulated.network import Network
from tests.peers.learning import SPACE, point
from tests.peers.swarm import RUN, key, roster, terms

START = torch.zeros(SPACE.numel)
PATIENCE_S = 10.0


def train(adapter: Tensor, peer: int, number: int) -> Tensor:
    """A step towards the member's own point, shorter in later rounds."""
    return adapter + 0.2 / number * (point(peer) - adapter)


class Circles:
    """Peers that hear their neighbours alone.

    Args:
        folder: for the files of own adapters.
        size: how many there are, numbered from 1.
        topology: who is whose neighbour.
        rounds: of gossip.
        step: local steps of all.
    """

    def __init__(
        self, folder: Path, size: int = 4, topology: str = "ring", rounds: int = 5, step: Step = train, **manner: object
    ) -> None:
        self.folder, self.rounds, self._step, self.now = folder, rounds, step, 0.0
        known = {"codec": Ternary(0.3), "gamma": 0.4, "seed": 7, "run": RUN[:16]} | manner
        self.manner = Manner(SPACE, **known)  # type: ignore[arg-type]
        self.near = among(topology, range(1, size + 1))  # type: ignore[arg-type]
        self.weights = metropolis(self.near)
        self.peers: dict[int, Peer] = {}
        self.stores: dict[int, MemoryStore] = {}
        self.circles: dict[int, Circle] = {}
        self.works: dict[int, GossipWork] = {}
        self.courses: dict[int, GossipCourse] = {}
        self.ended: dict[int, list[int]] = {number: [] for number in self.near}
        self.came: dict[int, Counter[int]] = {number: Counter() for number in self.near}
        self.asked: Counter[str] = Counter()
        self.alarms: list[tuple[int, str]] = []
        self.network = Network(self.peers)
        for number in self.near:
            self.start(number, MemoryStore())

    def file(self, number: int) -> Path:
        """Where a member's own adapter is."""
        return self.folder / f"own-{number}"

    def start(self, number: int, store: MemoryStore, *, restored: bool = False) -> None:
        """Begin a member, anew or again."""
        self.stores[number] = store
        peer = self.peers[number] = Peer(
            terms(self.rounds, PATIENCE_S),
            key(number),
            roster(self.near),
            GossipLedger(self.manner, START),
            store,
            hearing=Hearing(self.near),
            restored=restored,
            alarm=self._alarm(number),
        )
        self._watch(number, peer)
        circle = self.circles[number] = Circle(self.manner, number, self.weights[number], START)
        work = self.works[number] = GossipWork(peer, circle, self._step, self.file(number), self._alarm(number))
        told = self.ended[number]
        self.courses[number] = GossipCourse(
            peer, work, self.rounds, lambda ended, _: told.append(ended), lambda: self.now
        )

    def crash(self, number: int) -> None:
        """End a member, and begin it again from what is on its disk."""
        self.start(number, self.stores[number].crashed())

    def turns(self, number: int, most: int = 1 << 30) -> int:
        """Let a member do all that it can do now, or so much of it; how much that was."""
        count = 0
        while count < most and self.courses[number].turn() is not None:
            count += 1
        return count

    def meet(self, numbers: Iterable[int]) -> None:
        """Let neighbours compare what they hold."""
        there = set(numbers)
        for number in sorted(there):
            for other in self.near[number]:
                if other in there:
                    self.exchange(number, other)

    def exchange(self, number: int, other: int) -> None:
        call = self.network.call(number, other)

        def counted(method: str, request: bytes) -> Iterable[bytes]:
            self.asked[method] += 1
            return call(method, request)

        try:
            exchange(self.peers[number], other, counted)
        except FedpeftError as error:
            self.alarms.append((number, str(error)))

    def live(self, numbers: Iterable[int] | None = None, until: Callable[[], bool] | None = None) -> bool:
        """Let members work until something is so, or nobody of them has anything to do; whether it is.

        Args:
            numbers: of the members; None: of all.
            until: seen to after each turn, which all then take at once; None: all rounds are done.
        """
        there, most = list(self.near if numbers is None else numbers), 1 << 30 if until is None else 1
        done, idle = until or (lambda: self.over(there)), 0
        while not done() and idle < 2:
            self.meet(there)
            idle = 0 if sum(self.turns(number, most) for number in there) else idle + 1
        return done()

    def over(self, numbers: Iterable[int] | None = None) -> bool:
        """Whether members have done all rounds."""
        return all(self.courses[number].over() for number in numbers or self.near)

    def pulled(self) -> list[int]:
        """How many rounds each member has done."""
        return [work.pulled for work in self.works.values()]

    def rehearsed(self, rounds: int | None = None) -> dict[int, Tensor]:
        """The adapters that a simulation ends with."""
        gossip = Gossip(self.manner, self.near, START)
        for _ in range(rounds or self.rounds):
            gossip.step(self._step)
        return gossip.adapters

    def same(self) -> bool:
        """Whether all hold what the simulation ends with, to the bit."""
        rehearsed = self.rehearsed()
        return all(torch.equal(work.adapter, rehearsed[number]) for number, work in self.works.items())

    def _alarm(self, number: int) -> Callable[[str], None]:
        return lambda text: self.alarms.append((number, text))

    def _watch(self, number: int, peer: Peer) -> None:
        """Count whose segments come to a member."""
        take, came = peer.take, self.came[number]

        def counted(batch: pb.Batch) -> int:
            came.update(segment.peer for segment in batch.segments)
            return take(batch)

        peer.take = counted  # type: ignore[method-assign]
