"""The ways in which a network and its members go wrong, each with what must come of it."""

from dataclasses import replace
from random import Random

import pytest

from fedpeft._proto import peer_pb2 as pb
from fedpeft.keys.signing import digest
from fedpeft.peers.answering import answer
from fedpeft.peers.cut import Kind, Vote
from fedpeft.peers.segment import Fork, Segment
from fedpeft.peers.snapshot import Snapshot
from fedpeft.peers.store import MemoryStore
from fedpeft.runtime.simulated.network import Weather
from tests.peers.swarm import ORGANISER, RUN, Swarm, chain, filled, key, roster


@pytest.mark.parametrize("seed", range(4))
def test_64_loss_repetition_and_disorder_change_nothing(seed: int) -> None:
    good, bad = Swarm(5), Swarm(5, seed=seed)
    bad.network.weather = Weather(loss=0.3, repeat=0.3, damage=0.05)
    for swarm, rounds in ((good, 1), (bad, 6)):
        for _ in range(rounds):
            swarm.all_exchange()
        for number in swarm.peers:
            while swarm.publish(number):
                swarm.exchange(number, Random(seed).randrange(1, 5) if number == 5 else 5)
        for _ in range(rounds):
            swarm.all_exchange()
        assert swarm.same()
        swarm.close()
    assert good.peers[1].state == bad.peers[1].state
    assert good.peers[1].root == bad.peers[1].root


def test_65_a_minority_goes_on_and_cannot_close_and_comes_back() -> None:
    swarm = Swarm(5)
    swarm.meet()
    swarm.network.split([[1, 2, 3, 4], [5]])
    assert swarm.publish(5)
    swarm.advance(30.0)
    for number in (1, 2, 3, 4):
        swarm.publish(number)
    swarm.all_exchange()
    for _ in range(40):
        swarm.advance(2.0)
        swarm.all_exchange()
    assert swarm.peers[1].epoch > swarm.peers[5].epoch == 1
    assert swarm.publish(5), "it logs on"
    swarm.network.heal()
    swarm.meet()
    assert swarm.same()


def test_65_two_halves_go_on_and_none_closes_until_they_meet() -> None:
    swarm = Swarm(4)
    swarm.meet()
    swarm.network.split([[1, 2], [3, 4]])
    for number in swarm.peers:
        assert swarm.publish(number)
    for _ in range(40):
        swarm.advance(2.0)
        swarm.all_exchange()
    assert {peer.epoch for peer in swarm.peers.values()} == {1}
    assert swarm.peers[1].current() != swarm.peers[3].current()
    swarm.network.heal()
    swarm.meet()
    assert swarm.same()
    assert {peer.chains.count(n) for peer in swarm.peers.values() for n in (1, 2, 3, 4)} == {1}
    swarm.close()
    assert swarm.peers[1].snapshot() is not None


@pytest.mark.parametrize("same", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(3, 3), (3, 2), (1, 3)])
def test_66_a_cheat_is_proven_to_all_and_cut_off_where_it_began(same: int, lengths: tuple[int, int]) -> None:
    swarm = Swarm(4, most_segments=5, liars=(4,))
    swarm.meet()
    root = swarm.peers[1].root
    for branch, length, number in zip("ab", lengths, (1, 2), strict=True):
        bodies = [b"same"] * same + [f"{branch}{i}".encode() for i in range(length)]
        assert swarm.push(number, chain(bodies, 4, root)) == same + length
    assert swarm.exchange(2, 1)
    swarm.exchange(3, 2)
    for number, peer in swarm.peers.items():
        assert peer.chains.forked() == {4: same + 1}, number
        assert peer.chains.count(4) == same
        told = Fork.from_proto(pb.Fork.FromString(peer.chains.forks[4].to_proto().SerializeToString()))
        assert told.proves(RUN, key(4).public), "whoever has the key can check it"
        assert any(who == number and "peer 4 signed two segments" in text for who, text in swarm.alarms)
    swarm.meet()
    swarm.close()
    assert {peer.barred for peer in swarm.peers.values()} == {(4,)}
    swarm.meet()
    later = chain([b"again"], 4, swarm.peers[1].root, epoch=2)
    assert swarm.push(1, later) == 0, "for good"


def test_66_a_fork_further_down_is_found_though_one_is_known() -> None:
    swarm = Swarm(4, most_segments=5, liars=(4,))
    root = swarm.peers[1].root
    for number, bodies in ((1, [b"a", b"b", b"c"]), (2, [b"a", b"x", b"c"]), (3, [b"a", b"b", b"y"])):
        swarm.push(number, chain(bodies, 4, root))
    swarm.exchange(3, 1)
    assert swarm.peers[1].chains.forked() == {4: 3}
    swarm.all_exchange()
    assert {tuple(peer.chains.forked().items()) for peer in swarm.peers.values()} == {((4, 2),)}
    assert swarm.same()


def test_66_a_cut_that_was_voted_for_stands_though_a_cheat_in_it_is_found_before_it_is_applied() -> None:
    """Of the members who hold what it counts, one is enough: the others have its snapshot from it."""
    swarm = Swarm(4, liars=(4,))
    swarm.meet()
    swarm.push(1, chain([b"a", b"b"], 4, swarm.peers[1].root))
    swarm.meet()
    swarm.advance(0.0)
    swarm.advance(11.0)
    while not all(
        (0, Kind.FOR) in p.closing.votes and len(p.closing.votes[0, Kind.FOR]) == 3 for p in swarm.peers.values()
    ):
        swarm.all_exchange()
        for number in swarm.peers:
            if number not in swarm.peers[number].closing.votes.get((0, Kind.FOR), {}):
                swarm.advance(0.0, [number])
    swarm.push(1, chain([b"a", b"x"], 4, swarm.peers[1].root))
    swarm.meet()
    assert {peer.chains.count(4) for peer in swarm.peers.values()} == {1}
    swarm.close(rounds=100)
    swarm.meet()
    assert swarm.same()
    cut = Snapshot.from_bytes(swarm.peers[2].snapshot() or b"", RUN, ORGANISER.public, 0, 32).cut
    assert [head[:2] for head in cut.heads] == [(4, 2)]
    assert cut.barred == ()
    assert {tuple(peer.chains.forked().items()) for peer in swarm.peers.values()} == {((4, 0),)}, (
        "what is proven, stays"
    )
    assert swarm.push(1, chain([b"again"], 4, swarm.peers[1].root, epoch=2)) == 0
    swarm.close()
    assert {peer.barred for peer in swarm.peers.values()} == {(4,)}


def test_67_what_is_ahead_is_kept_nowhere() -> None:
    swarm = Swarm(4, most_segments=1 << 16, liars=(4,))
    peer = swarm.peers[1]
    flood = [Segment(1, 4, number, b"x", bytes(64)) for number in range(2, 5000)]
    before = len(list(swarm.stores[1].records()))
    assert swarm.push(1, flood) == 0
    assert not peer.chains.heads()
    assert len(list(swarm.stores[1].records())) == before


def test_67_votes_and_proposals_are_bounded_whoever_signs_them() -> None:
    swarm = Swarm(4, liars=(4,))
    peer = swarm.peers[1]
    for view in [*range(0, 400, 1), 1 << 31]:
        votes = [
            Vote(1, view, kind, 4, digest("cut", bytes([i]))).signed(RUN, key(4)).to_proto()
            for kind in Kind
            for i in range(3)
        ]
        peer.take(pb.Batch(run=RUN, epoch=1, votes=votes))
    assert sum(map(len, peer.closing.votes.values())) <= 2 * 65
    assert sum(map(len, peer.closing.second.values())) <= 65
    assert sum(map(len, swarm.stores[1].records())) < 65 * 3 * 200


def test_67_what_nobody_knows_of_is_not_kept_with_what_is_right() -> None:
    """A field that no version has, as large as anything, behind a vote that is right."""
    swarm = Swarm(4, liars=(4,))
    vote = Vote(1, 0, Kind.FOR, 4, b"").signed(RUN, key(4)).to_proto().SerializeToString()
    padded = pb.Vote.FromString(vote + b"\xfa\x3f\x80\x80\x40" + bytes(1 << 20))
    assert swarm.peers[1].take(pb.Batch(run=RUN, epoch=1, votes=[padded])) == 1
    assert sum(map(len, swarm.stores[1].records())) < 2000


def test_67_an_answer_is_bounded_whatever_is_asked() -> None:
    swarm = filled()
    asked = pb.Wanted(run=RUN, epoch=1, forked=[1] * 5000)
    asked.ranges.extend(pb.Range(peer=1, first=0, last=(1 << 32) - 1) for _ in range(5000))
    assert sum(map(len, answer(swarm.peers[1], "Segments", asked.SerializeToString()))) < 1000


@pytest.mark.parametrize("wrong", [{"body": b"other"}, {"signature": bytes(64)}, {"peer": 2}, {"epoch": 2}])
def test_68_a_forged_chain_is_left_out(wrong: dict[str, object]) -> None:
    swarm = Swarm(4, liars=(4,))
    good = chain([b"a", b"b", b"c"], 4, swarm.peers[1].root)
    assert swarm.push(1, [good[0], replace(good[1], **wrong), good[2]]) == 1
    assert swarm.peers[1].chains.count(4) == 1
    other = chain([b"a"], 4, digest("another root"))
    assert swarm.push(2, other) == 0
    assert not swarm.peers[1].chains.forks


def test_69_a_newcomer_has_what_a_replay_has() -> None:
    swarm = filled()
    for _ in range(3):
        swarm.close()
        swarm.meet()
        for number in swarm.peers:
            swarm.publish(number)
    swarm.peers[2].take(pb.Batch(run=RUN, roster=roster([1, 2, 3, 4, 5], serial=2).to_proto()))
    newcomer = swarm.start(5, MemoryStore(), roster=roster([1, 2, 3, 4, 5], serial=2))
    assert not swarm.exchange(5, 1), "its roster is not yet in force"
    swarm.meet()
    swarm.close([1, 2, 3, 4])
    assert swarm.exchange(5, 1)
    assert newcomer.number == 5
    swarm.meet()
    assert swarm.publish(5)
    swarm.meet()
    assert swarm.same()
    assert newcomer.current() == swarm.peers[1].current()
    assert newcomer.epoch == swarm.peers[1].epoch > 4


def test_69_a_newcomer_of_the_first_epoch_waits_for_its_end() -> None:
    swarm = Swarm(4)
    five = roster([1, 2, 3, 4, 5], serial=2)
    newcomer = swarm.start(5, MemoryStore(), roster=five)
    swarm.peers[1].take(pb.Batch(run=RUN, roster=five.to_proto()))
    for _ in range(3):
        swarm.all_exchange()
    assert not newcomer.may_speak()
    assert swarm.publish(5) is None
    swarm.start(2, swarm.stores[2], roster=five)
    assert swarm.peers[2].roster.serial == 1, "who was there keeps the roster that its epoch began with"
    swarm.close([1, 2, 3, 4])
    swarm.meet()
    assert swarm.same()
    assert newcomer.may_speak()
    assert swarm.publish(5)
