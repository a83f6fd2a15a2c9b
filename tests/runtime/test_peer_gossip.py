"""Gossip over real lines: each peer talks with its neighbours alone, and all end with the bits of a simulation."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpeft._proto import peer_pb2 as pb
from fedpeft.codecs import Ternary
from fedpeft.federation import Plan
from fedpeft.keys import peer as keys
from fedpeft.keys.signing import SigningKey
from fedpeft.peers.delta_work import in_epoch
from fedpeft.peers.gossip import Circle, Manner, metropolis
from fedpeft.peers.gossip_ledger import GossipLedger
from fedpeft.peers.gossip_work import GossipWork, steps
from fedpeft.peers.hearing import Hearing
from fedpeft.peers.peer import Peer
from fedpeft.peers.store import FolderStore
from fedpeft.peers.work import Work
from fedpeft.random import Purpose, Stream
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.gossip_course import GossipCourse
from fedpeft.runtime.peer.limits import Limits
from fedpeft.runtime.peer.node import Node, Ways
from fedpeft.runtime.peer.topology import among
from fedpeft.runtime.peer.trust import Trust
from fedpeft.runtime.simulated.gossip import Gossip
from fedpeft.training import Job, Settings, Trained
from tests.peers.learning import SPACE, examples, point
from tests.runtime.peer_world import RUN, SECONDS, World

ALL = ("a", "b", "c", "d", "e", "f")
START = torch.zeros(SPACE.numel)
ROUNDS = 6
PLAN = Plan(ROUNDS, 3, settings=Settings(local_steps=2, learning_rate=0.2), schedule="cosine")
MANNER = Manner(SPACE, Ternary(0.3), gamma=0.4, seed=3, run=RUN[:16])


class Restless:
    """Steps towards the point of the data, by way of what the job's streams draw."""

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        for job in jobs:
            target, vector = point(job.data.tokens[0][0]), job.start
            drawn = torch.from_numpy(job.order.normal(SPACE.numel) + job.dropout.normal(SPACE.numel)).float()
            for _ in range(job.settings.local_steps):
                vector = vector + job.settings.learning_rate * (target + 0.1 * drawn - vector)
            yield Trained(vector, {})


class Ring(World):
    """A run of gossip.

    Args:
        folder: of all.
        names: of the members.
        patience_s: of a round.
    """

    def __init__(self, folder: Path, names: Sequence[str], patience_s: float = SECONDS) -> None:
        super().__init__(folder, 1, ROUNDS, patience_s)
        self.admit(*names)
        self.near = among("ring", range(1, len(names) + 1))
        self.free = threading.Event()
        self.free.set()
        self.works: dict[str, GossipWork] = {}
        self.ended: dict[str, list[int]] = {name: [] for name in names}
        self.came: dict[str, Counter[int]] = {name: Counter() for name in names}
        self.pushed: Counter[int] = Counter()

    def node(
        self, name: str, dials: bool = False, every_s: float = 0.2, work: Work | None = None, **fixed: str
    ) -> Node:
        own, number = self.folder / name, 1 + [m.name for m in self.rosters[0].members].index(name)
        known = fixed or {n: node.address for n, node in self.nodes.items() if node.address}
        key, store = SigningKey.load(own / "keys" / "peer.key"), FolderStore(own / "state")
        ledger, hearing = GossipLedger(MANNER, START), Hearing(self.near)
        peer = Peer(self.terms, key, self.rosters[0], ledger, store, hearing=hearing, alarm=self.said.append)
        self._watch(peer, self.came[name])
        circle = Circle(MANNER, number, metropolis(self.near)[number], START)
        local = steps(PLAN, Restless(), examples(number))

        def train(adapter: Tensor, peer: int, number: int) -> Tensor:
            assert (name, number) != ("c", 2) or self.free.wait(SECONDS)
            return local(adapter, peer, number)

        self.works[name] = GossipWork(peer, circle, train, own / "own", self.said.append)
        told = self.ended[name]
        node = Node(
            peer,
            GossipCourse(peer, self.works[name], ROUNDS, lambda ended, _: told.append(ended)),
            Trust(peer, key.public, keys.pair(own / "keys")),
            Contacts({n: [place] for n, place in known.items()}, every_s),
            Ways(None if dials else "127.0.0.1:0", every_s=every_s, fanout=1, stay_s=SECONDS),
            Limits(deadline_s=5.0),
            say=self.said.append,
        )
        push = node._lines.push

        def counted(numbers: Collection[int], batch: bytes) -> set[int]:
            self.pushed[len(numbers)] += 1
            return push(numbers, batch)

        node._lines.push = counted  # type: ignore[method-assign]
        return node

    def done(self, *names: str, rounds: int = ROUNDS) -> bool:
        """Whether members have told that so many rounds are done."""
        return all(rounds in self.ended[name] for name in names)

    def adapters(self) -> dict[int, Tensor]:
        return {1 + ALL.index(name): work.adapter for name, work in self.works.items()}

    @staticmethod
    def _watch(peer: Peer, came: Counter[int]) -> None:
        take = peer.take

        def counted(batch: pb.Batch) -> int:
            came.update(segment.peer for segment in batch.segments)
            return take(batch)

        peer.take = counted  # type: ignore[method-assign]


def rehearsed(size: int) -> dict[int, Tensor]:
    """What the simulation ends with, its local steps written out."""

    def train(adapter: Tensor, peer: int, number: int) -> Tensor:
        order, dropout = (Stream(PLAN.seed, purpose, number, peer) for purpose in (Purpose.DATA, Purpose.DROPOUT))
        return next(Restless().train([Job(adapter, examples(peer), in_epoch(PLAN, number), order, dropout)])).vector

    gossip = Gossip(MANNER, among("ring", range(1, size + 1)), START)
    for _ in range(ROUNDS):
        gossip.step(train)
    return gossip.adapters


@pytest.mark.parametrize("stopped", [False, True])
def test_peers_in_a_ring_end_with_the_bits_of_the_simulation(tmp_path: Path, stopped: bool) -> None:
    names = ALL[:4]
    with Ring(tmp_path, names) as ring:
        for name in names:
            ring.start(name)
        if stopped:
            ring.until(lambda: ring.done("b", rounds=2))
            ring.stop("b")
            ring.start("b")
        ring.until(lambda: ring.done(*names))
        expected = rehearsed(4)
        assert all(torch.equal(own, expected[number]) for number, own in ring.adapters().items())
        assert {node.waits_for() for node in ring.nodes.values()} == {"the run is over"}
        assert not [text for text in ring.said if "anew" in text or "two segments" in text]


def test_a_silent_neighbour_is_left_behind_and_ends_its_rounds_too(tmp_path: Path) -> None:
    names = ALL[:4]
    with Ring(tmp_path, names, patience_s=0.5) as ring:
        ring.free.clear()
        for name in names:
            ring.start(name)
        ring.until(lambda: ring.done("a", "b", "d"))
        assert ring.ended["c"] == [1]
        ring.free.set()
        ring.until(lambda: ring.done("c", rounds=2))
        ring.stop("c")
        ring.start("c")
        ring.until(lambda: ring.done("c"))
        assert sorted(set(ring.ended["c"])) == list(range(1, ROUNDS + 1))
        assert not [text for text in ring.said if "two segments" in text]


def test_nobody_meets_or_holds_or_is_given_what_is_not_its_neighbours(tmp_path: Path) -> None:
    with Ring(tmp_path, ALL) as ring:
        for name in ALL:
            ring.start(name)
        ring.until(lambda: ring.done(*ALL))
        for number, name in enumerate(ALL, 1):
            node, near = ring.nodes[name], ring.near[number]
            assert set(node.others()) == set(near)
            assert set(node.peer.chains.heads()) == {number, *near}
            assert set(ring.came[name]) - {number} == set(near)
            assert not any(node.contacts.seen(n).heard for n in {*range(1, 7)} - {number, *near})
        assert max(ring.pushed) == 2, "who is not told by its neighbour is told by nobody"
