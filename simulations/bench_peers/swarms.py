"""Simulated peers: what a newcomer needs, and in how many rounds all come to hold the same."""

import time

from fedpeft.peers.exchange import exchange
from fedpeft.peers.peer import Peer
from fedpeft.peers.scalar import ScalarLedger
from fedpeft.peers.store import MemoryStore
from fedpeft.random import Purpose, Stream
from fedpeft.runtime.peer.topology import neighbours
from fedpeft.runtime.simulated.swarm import Conditions, Swarm
from simulations.bench_peers.scalars import RUN, Made

SEGMENTS = 4


def begun(ledger: ScalarLedger, peers: int, seed: int) -> Swarm:
    """Peers that all know each other, on a network that loses nothing."""
    near = {i + 1: [j + 1 for j in others] for i, others in enumerate(neighbours("complete", peers))}
    conditions = Conditions(near, seed, most_segments=SEGMENTS)
    return Swarm(ledger, [Made(ledger)] * peers, conditions, RUN)


def join(ledger: ScalarLedger, peers: int, history: int, seed: int) -> dict[str, float]:
    """What somebody who was never there receives and sends, and how long it takes to hold the adapter.

    Args:
        ledger: of scalars.
        peers: members, of whom the newcomer is one.
        history: closed epochs.
        seed: of the simulation.
    """
    swarm = begun(ledger, peers, seed)
    for _ in swarm.epochs(history):
        pass
    scalars = history * SEGMENTS * ledger.most_body * peers
    carried = swarm.network.sent.total()
    last = swarm.peers[peers]
    newcomer = Peer(last.terms, last._key, last.roster, ledger, MemoryStore())
    swarm.network.peers = {**swarm.peers, peers: newcomer}
    before = swarm.network.sent.total()
    began = time.perf_counter()
    exchange(newcomer, 1, swarm.network.call(peers, 1))
    ledger.adapter(newcomer.current())
    seconds = time.perf_counter() - began
    assert newcomer.state == swarm.peers[1].state
    return {
        "join_bytes": swarm.network.sent.total() - before,
        "join_s": seconds,
        "bytes_per_scalar_and_peer": carried / scalars / (peers - 1),
    }


def rounds_to_agree(ledger: ScalarLedger, peers: int, seed: int) -> int:
    """Rounds of random pairs until every peer holds what each of them published at the beginning."""
    swarm = begun(ledger, peers, seed)
    for number, peer in swarm.peers.items():
        peer.publish(Made(ledger).segment(b"", 1, number, 1), 1, 1)
    rounds = 0
    while len({peer.chains.digest() for peer in swarm.peers.values()}) > 1:
        rounds += 1
        meetings = Stream(seed, Purpose.TOPOLOGY, rounds)
        order, picks = meetings.permutation(peers).tolist(), meetings.words(peers, 1 << 20).tolist()
        for index, pick in zip(order, picks, strict=True):
            other = 1 + (index + 1 + pick % (peers - 1)) % peers
            exchange(swarm.peers[index + 1], other, swarm.network.call(index + 1, other))
    return rounds
