"""Members who sign what they like: what they may not bring about, and what they may not cost."""

import hashlib
from unittest.mock import patch

import pytest

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import IdentityError
from fedpeft.peers import chains as chains_module
from fedpeft.peers import taking
from fedpeft.peers.cut import Cut, Kind, Proposal, Vote
from fedpeft.peers.peer import Peer
from fedpeft.peers.segment import Fork, Segment, beginning
from fedpeft.peers.store import MemoryStore
from tests.peers.swarm import RUN, HashLedger, Swarm, chain, closed, fork, key, roster, terms


def with_a_proposer_who_lies() -> tuple[Swarm, list[Segment]]:
    """Three who have published all they may, and a member whose turn it is to propose, with one segment."""
    swarm = Swarm(4, liars=(2,))
    swarm.meet()
    for _ in range(3):
        for number in swarm.peers:
            assert swarm.publish(number)
    own = chain([b"mine"], 2, swarm.peers[1].root)
    for number in swarm.peers:
        swarm.push(number, own)
    swarm.meet()
    assert swarm.peers[1].closing.proposer(0) == 2
    return swarm, own


def test_a_proposer_leaves_nobody_out() -> None:
    swarm, own = with_a_proposer_who_lies()
    root = swarm.peers[1].root
    state = HashLedger().fold(swarm.peers[1].state, 1, {2: [b"mine"]})
    alone = ((2, 1, own[0].link(RUN, beginning(RUN, root, 2))),)
    cut = Cut(RUN, 1, root, alone, (), swarm.roster.hash, hashlib.sha256(state).digest())
    for number in swarm.peers:
        swarm.peers[number].take(pb.Batch(epoch=1, proposals=[Proposal(0, -1, cut).signed(key(2)).to_proto()]))
    swarm.advance(10.0)
    wanted = HashLedger().fold(
        swarm.peers[1].state,
        1,
        {n: [s.body for s in swarm.peers[1].chains.segments(n)] for n in (1, 2, 3, 4)},
    )
    swarm.close()
    assert swarm.peers[1].root != cut.hash
    assert swarm.peers[1].state == wanted, "all that was there when they became ready counts"


def test_a_proposer_keeps_no_roster_that_others_know_to_be_old() -> None:
    swarm, _ = with_a_proposer_who_lies()
    old = swarm.peers[1]._open.propose(swarm.roster)
    newer = roster([1, 3, 4], serial=2)
    swarm.peers[3].take(pb.Batch(roster=newer.to_proto()))
    swarm.meet()
    for number in swarm.peers:
        swarm.peers[number].take(pb.Batch(epoch=1, proposals=[Proposal(0, -1, old).signed(key(2)).to_proto()]))
    swarm.close()
    assert {peer.roster.serial for peer in swarm.peers.values()} == {2}


def test_a_newcomer_believes_no_snapshot_of_before_it_came() -> None:
    first, second = roster([1]), roster([1, 2, 3, 4, 5], serial=2)
    newcomer = Peer(terms(), key(5), first, HashLedger(), MemoryStore())
    newcomer.take(pb.Batch(roster=second.to_proto()))
    poison = closed(first, first, [1], epoch=1000, before=bytes(32), state=b"poison".ljust(32, b"\0"))
    with pytest.raises(IdentityError, match="under roster 1, where 2 is known"):
        newcomer.adopt(poison.to_bytes())
    assert newcomer.epoch == 1


def test_a_body_is_read_only_where_its_member_signed_it_and_it_follows() -> None:
    swarm = Swarm(4)
    peer = swarm.peers[1]
    forged = [Segment(1, 2, 1, bytes([i]), bytes(64)) for i in range(1, 30)]
    ahead = chain([b"a", b"b", b"c"], 3, peer.root)[2:]
    with (
        patch.object(peer.chains, "_check") as read,
        patch.object(chains_module, "verified", return_value=False) as seen,
    ):
        swarm.push(1, [*forged, *ahead * 20])
    assert not read.called
    assert seen.call_count == 1, "after one that does not fit, no more of that member is looked at"
    one, other = fork(2, peer.root).first, fork(2, peer.root).second
    with patch.object(peer.chains, "_check") as read:
        peer.take(pb.Batch(epoch=1, forks=[Fork(bytes(32), one, other).to_proto()]))
    assert not read.called


def test_of_a_batch_with_a_forged_vote_the_rest_is_left_unread() -> None:
    peer = Swarm(4).peers[1]
    votes = [Vote(1, view, Kind.FOR, 2, b"").to_proto() for view in range(50)]
    with patch.object(taking, "verified", return_value=False) as seen:
        assert peer.take(pb.Batch(epoch=1, votes=votes)) == 0
    assert seen.call_count == 1


def test_what_a_forked_member_published_hides_no_other_member_s() -> None:
    swarm = Swarm(4, liars=(2,))
    root = swarm.peers[1].root
    swarm.push(1, chain([b"one"], 2, root))
    others = [*chain([b"another", b"more"], 2, root)[1:], *chain([b"right"], 3, root)]
    assert swarm.push(1, others) == 1
    assert swarm.peers[1].chains.count(3) == 1
