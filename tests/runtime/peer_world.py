"""Peers of a test's own in one process: real keys, real TLS on loopback, and work that costs nothing."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, PayloadError
from fedpeft.keys import peer as keys
from fedpeft.keys.signing import SigningKey
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member, Roster
from fedpeft.peers.store import FolderStore
from fedpeft.peers.terms import Terms
from fedpeft.peers.work import Work
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.limits import Limits
from fedpeft.runtime.peer.log_course import LogCourse
from fedpeft.runtime.peer.node import Node, Ways
from fedpeft.runtime.peer.trust import Trust

RUN = bytes(range(32))
SECONDS = 120.0


class Sum:
    """A ledger whose state is the sum of all bytes that were published, and a work that publishes its place."""

    most_bytes, most_body, live = 8, 16, True

    def beginning(self) -> bytes:
        return bytes(8)

    def check(self, body: bytes) -> None:
        if not 1 <= len(body) <= self.most_body:
            raise PayloadError(Defect.SIZE, f"{len(body)} bytes")

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        total = sum(sum(body) for theirs in bodies.values() for body in theirs)
        return (int.from_bytes(state, "little") + total).to_bytes(8, "little")

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        return hashlib.sha256(bytes((epoch, peer, number))).digest()[:4]

    def adapter(self, state: bytes) -> Tensor:
        return torch.tensor([float(int.from_bytes(state, "little"))])


class Telling(Sum):
    """A work that remembers which state each segment began from, and cannot train in some epochs.

    Args:
        live: as of a work.
        fails: the epochs, and what is raised then; b"" instead: a body that the ledger refuses.
    """

    def __init__(self, live: bool = True, fails: Mapping[int, Exception | bytes] | None = None) -> None:
        self.live, self._fails = live, fails or {}
        self.began: dict[tuple[int, int], bytes] = {}
        self.asked: Counter[int] = Counter()

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        self.asked[epoch] += 1
        failure = self._fails.get(epoch)
        if isinstance(failure, Exception):
            raise failure
        self.began[epoch, number] = state
        return super().segment(state, epoch, peer, number) if failure is None else failure


class World:
    """A run with an organiser, and nodes by name that are begun and ended as a test likes; a context manager."""

    def __init__(self, folder: Path, epochs: int = 3, segments: int = 2, patience_s: float = 1.0) -> None:
        self.folder, self.organiser, self.epochs = folder, SigningKey(), epochs
        self.terms = Terms(RUN, self.organiser.public, segments, patience_s)
        self.rosters: list[Roster] = []
        self.nodes: dict[str, Node] = {}
        self.states: dict[str, dict[int, bytes]] = {}
        self.said: list[str] = []
        self._threads: dict[str, threading.Thread] = {}

    def admit(self, *names: str) -> Roster:
        """The next roster, with members of these names added; nobody's address is on it."""
        members = [*self.rosters[-1].members] if self.rosters else []
        for name in names:
            card = keys.Card.load(keys.join(self.folder / name / "keys", RUN, name, ()))
            members.append(Member(len(members) + 1, name, card.key, card.certificate))
        following = self.rosters[-1].next(members) if self.rosters else Roster(RUN, 1, tuple(members))
        self.rosters.append(following.signed(self.organiser))
        return self.rosters[-1]

    def batch(self, roster: Roster) -> pb.Batch:
        """A roster as peers give it to each other."""
        return pb.Batch(roster=roster.to_proto())

    def node(
        self, name: str, dials: bool = False, every_s: float = 0.2, work: Work | None = None, **fixed: str
    ) -> Node:
        """A node that is not begun; it knows where those are who run already, or only those of `fixed`."""
        own = self.folder / name
        known = fixed or {n: node.address for n, node in self.nodes.items() if node.address}
        key = SigningKey.load(own / "keys" / "peer.key")
        peer = Peer(self.terms, key, self.rosters[0], Sum(), FolderStore(own / "state"), alarm=self.said.append)
        for roster in self.rosters[1:]:
            peer.take(self.batch(roster))
        states = self.states.setdefault(name, {})
        return Node(
            peer,
            LogCourse(peer, work or Sum(), self.epochs, states.__setitem__, self.said.append),
            Trust(peer, key.public, keys.pair(own / "keys")),
            Contacts({n: [place] for n, place in known.items()}, every_s),
            Ways(None if dials else "127.0.0.1:0", every_s=every_s, stay_s=SECONDS),
            Limits(deadline_s=5.0),
            say=self.said.append,
        )

    def start(self, name: str, dials: bool = False, work: Work | None = None, **fixed: str) -> Node:
        """Begin a node."""
        node = self.nodes[name] = self.node(name, dials, work=work, **fixed)
        self._threads[name] = threading.Thread(target=node.run, name=name)
        self._threads[name].start()
        return node

    def stop(self, name: str) -> None:
        """End a node, and let its folder go."""
        node = self.nodes.pop(name)
        node.stop()
        self._threads.pop(name).join(SECONDS)
        node.peer._store.close()  # type: ignore[attr-defined]

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something is true."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, f"it does not happen: {self.told()}"
            time.sleep(0.01)

    def closed(self, epoch: int, *names: str) -> bool:
        """Whether nodes have closed an epoch."""
        return all(epoch in self.states.get(name, {}) for name in names)

    def told(self) -> object:
        return {n: (node.peer.epoch, node.waits_for()) for n, node in self.nodes.items()}, self.said[-10:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.nodes):
            self.stop(name)
