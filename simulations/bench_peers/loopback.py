"""Segments from one peer to another over gRPC with mutual TLS on loopback, every byte of TCP counted."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpeft._proto import peer_pb2 as pb
from fedpeft.keys import peer as keys
from fedpeft.keys.signing import SigningKey
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member, Roster
from fedpeft.peers.store import MemoryStore
from fedpeft.peers.terms import Terms
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.dialling import Lines
from fedpeft.runtime.peer.limits import Limits
from fedpeft.runtime.peer.service import Service
from fedpeft.runtime.peer.trust import Trust
from simulations.bench_peers.scalars import RUN, Made

WAYS = {"pushed one by one": 1, "pushed by fours": 4}


class Meter:
    """A door of its own to an address, that counts what goes through it both ways."""

    def __init__(self, address: str) -> None:
        self.count = 0
        host, _, port = address.rpartition(":")
        self._to = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listening.accept()
            except OSError:
                return
            inner = socket.create_connection(self._to)
            for source, sink in ((outer, inner), (inner, outer)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.count += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def bytes_per_scalar(ledger: Ledger, segments: int) -> dict[str, float]:
    """Bytes of TCP, both ways, for each scalar that one peer gives another, by the way in which it does.

    What a connection costs to open is not in it: TLS greets once, and not again while the peers stay.

    Args:
        ledger: of scalars.
        segments: how many.
    """
    with tempfile.TemporaryDirectory() as folder:
        return {way: _measured(Path(folder), ledger, segments, at_once) for way, at_once in WAYS.items()}


def _measured(folder: Path, ledger: Ledger, segments: int, at_once: int) -> float:
    organiser, names = SigningKey(), ("giver", "taker")
    cards = [keys.Card.load(keys.join(folder / name, RUN, name, ())) for name in names]
    members = tuple(
        Member(i, name, c.key, c.certificate) for i, (name, c) in enumerate(zip(names, cards, strict=True), 1)
    )
    roster = Roster(RUN, 1, members).signed(organiser)
    terms, made = Terms(RUN, organiser.public, segments), Made(ledger)
    peers = [Peer(terms, SigningKey.load(folder / name / "peer.key"), roster, ledger, MemoryStore()) for name in names]
    peers[0].heard_from(2)
    with _line(folder, peers) as (lines, meter):
        lines.push([2], pb.Batch(epoch=1).SerializeToString())
        before = meter.count
        for begin in range(0, segments, at_once):
            batch = pb.Batch(epoch=1)
            for number in range(begin + 1, begin + at_once + 1):
                segment = peers[0].publish(made.segment(peers[0].state, 1, 1, number), 1, number)
                assert segment is not None
                batch.segments.append(segment.to_proto())
            assert lines.push([2], batch.SerializeToString()) == {2}
        count = meter.count - before
    assert peers[1].chains.digest() == peers[0].chains.digest()
    return count / segments / ledger.most_body


@contextmanager
def _line(folder: Path, peers: list[Peer]) -> Iterator[tuple[Lines, Meter]]:
    trusts = [
        Trust(peer, member.key, keys.pair(folder / member.name))
        for peer, member in zip(peers, peers[0].roster.members, strict=True)
    ]
    limits = Limits()
    service = Service(
        peers[1],
        trusts[1],
        Contacts({}, 1.0),
        lambda: pb.Greeting(run=RUN, peer=2),
        "127.0.0.1:0",
        lambda: None,
        limits,
    )
    service.start()
    meter = Meter(service.address)
    lines = Lines(trusts[0], Contacts({"taker": [meter.address]}, 1.0), lambda: pb.Greeting(run=RUN, peer=1), limits)
    try:
        yield lines, meter
    finally:
        lines.close()
        meter.close()
        service.close()
