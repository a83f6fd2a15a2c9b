"""Whoever asks for much, or sends much, holds up nobody else."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.peers.answering import answer, pieces
from fedpeft.peers.peer import Peer
from tests.peers.swarm import RUN, Swarm, chain

LONG = 1300


def free(peer: Peer) -> bool:
    """Whether another thread may have the peer now."""
    got: list[bool] = []

    def ask() -> None:
        got.append(peer.lock.acquire(timeout=0.1))
        if got[0]:
            peer.lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return got[0]


def long_chain(swarm: Swarm, length: int = LONG) -> list[pb.Segment]:
    bodies = [b"." + i.to_bytes(2, "little") * 15 for i in range(length)]
    return [segment.to_proto() for segment in chain(bodies, 4, swarm.peers[1].root)]


def everything(peer: Peer) -> bytes:
    wanted = pb.Wanted(run=RUN, epoch=peer.epoch)
    wanted.ranges.add(peer=4, first=1, last=LONG)
    return wanted.SerializeToString()


def test_a_peer_is_free_between_the_pieces_of_an_answer() -> None:
    swarm = Swarm(4, most_segments=LONG, liars=(4,))
    peer, sent = swarm.peers[1], long_chain(swarm)
    assert peer.take(pb.Batch(epoch=1, segments=sent)) == LONG
    got = []
    for piece in answer(peer, "Segments", everything(peer)):
        assert free(peer)
        got.append(pb.Batch.FromString(piece))
    assert len(got) > 2
    assert [segment for batch in got for segment in batch.segments] == sent


def test_an_epoch_that_ends_within_an_answer_leaves_it_as_it_was() -> None:
    swarm = Swarm(4, most_segments=LONG, liars=(4,))
    for number in (1, 2, 3):
        swarm.peers[number].take(pb.Batch(epoch=1, segments=long_chain(swarm)))
    peer = swarm.peers[1]
    sent, reading = long_chain(swarm), answer(peer, "Segments", everything(peer))
    got = [pb.Batch.FromString(next(reading))]
    swarm.meet()
    swarm.close()
    got += map(pb.Batch.FromString, reading)
    assert peer.epoch == 2
    assert {batch.epoch for batch in got} == {1}
    assert [segment for batch in got for segment in batch.segments] == sent


def test_a_large_push_is_taken_in_parts_and_a_useless_one_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Swarm(4, most_segments=LONG, liars=(4,))
    peer, sent, parts = swarm.peers[1], long_chain(swarm), []
    take = peer.take

    def counting(batch: pb.Batch) -> int:
        assert free(peer)
        parts.append(len(batch.segments))
        return take(batch)

    monkeypatch.setattr(peer, "take", counting)
    push = pb.Batch(epoch=1, segments=sent).SerializeToString()
    for taken, most in ((LONG, LONG), (0, 1)):
        parts.clear()
        (reply,) = answer(peer, "Push", push)
        assert pb.Taken.FromString(reply).taken == taken
        assert 1 <= len(parts) <= most and max(parts) <= 64
    assert len(parts) == 1


@given(st.lists(st.integers(0, 1 << 17), max_size=8), st.integers(0, 200), st.booleans())
def test_pieces_are_what_came_in_its_order(bodies: list[int], votes: int, with_roster: bool) -> None:
    batch = pb.Batch(epoch=3, segments=[pb.Segment(number=i, body=bytes(n)) for i, n in enumerate(bodies)])
    batch.votes.extend(pb.Vote(peer=i) for i in range(votes))
    batch.forks.extend(pb.Fork(peer=i) for i in range(votes % 3))
    batch.proposals.extend(pb.Proposal(view=i) for i in range(votes % 5))
    if with_roster:
        batch.roster.CopyFrom(pb.Roster(serial=7))
    parts, whole = list(pieces(batch)), pb.Batch()
    for part in parts:
        items = [*part.segments, *part.votes, *part.forks, *part.proposals]
        assert len(items) <= 64
        assert len(items) == 1 or sum(item.ByteSize() for item in items) <= 1 << 16
        whole.MergeFrom(part)
    assert whole == batch
    assert {part.epoch for part in parts} == {3}
