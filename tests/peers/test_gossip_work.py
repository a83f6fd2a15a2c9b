"""Gossip by real peers: whatever stops, the bits are those of the simulation; who lies or is silent costs little."""

from pathlib import Path

import pytest
import torch

from fedpeft._proto import peer_pb2 as pb
from fedpeft.codecs import Identity, Rotated
from fedpeft.errors import PayloadError, RunError
from fedpeft.peers.cut import Kind, Vote
from fedpeft.peers.gossip_ledger import GossipLedger
from fedpeft.peers.segment import Segment
from fedpeft.peers.store import MemoryStore
from fedpeft.strategies import Krum, Median
from tests.peers.circles import PATIENCE_S, START, Circles, train
from tests.peers.swarm import RUN, fork, key


@pytest.mark.parametrize(("topology", "size"), [("ring", 4), ("random", 7), ("complete", 4), ("ring", 2), ("ring", 1)])
@pytest.mark.parametrize("how", [{}, {"codec": Rotated(1), "strategy": Median()}, {"largest_norm": 0.5}], ids=repr)
def test_members_come_to_what_the_simulation_comes_to(tmp_path: Path, topology, size, how):
    circles = Circles(tmp_path, size, topology, **how)
    assert circles.live()
    assert circles.same()
    assert all(told == [1, 2, 3, 4, 5] for told in circles.ended.values())
    assert not circles.alarms
    assert {course.waits_for() for course in circles.courses.values()} == {"the run is over"}


def crash_at_turn(circles: Circles, turn: int) -> bool:
    """Whether member 2 did so many turns before the end, and crashed then."""
    done = 0
    while not circles.over():
        circles.meet(circles.near)
        for number in circles.near:
            while circles.courses[number].turn() is not None:
                done += number == 2
                if number == 2 and done == turn:
                    circles.crash(2)
                    return True
    return False


def test_who_is_stopped_after_any_turn_comes_to_the_same_bits(tmp_path: Path):
    for turn in range(1, 7):
        folder = tmp_path / str(turn)
        folder.mkdir()
        circles = Circles(folder, rounds=3)
        assert crash_at_turn(circles, turn)
        assert circles.live()
        assert circles.same(), turn
        assert not circles.alarms


def test_who_is_stopped_before_its_segment_is_published_trains_no_second_time(tmp_path: Path, monkeypatch):
    asked: list[tuple[int, int]] = []

    def told(adapter, peer, number):
        asked.append((peer, number))
        return train(adapter, peer, number)

    circles = Circles(tmp_path, step=told)
    circles.live(until=lambda: min(circles.pulled()) == 2)
    assert circles.works[2].said == 2
    with monkeypatch.context() as broken:
        broken.setattr(circles.peers[2], "publish", lambda *_: (_ for _ in ()).throw(OSError("power")))
        with pytest.raises(OSError, match="power"):
            circles.turns(2)
    circles.crash(2)
    assert circles.live() and asked.count((2, 3)) == 1
    assert circles.same()


def test_a_silent_neighbour_is_waited_for_once(tmp_path: Path):
    circles = Circles(tmp_path)
    assert circles.live(until=lambda: min(circles.pulled()) == 1)
    others = [1, 2, 4]
    assert not circles.live(others)
    assert circles.pulled() == [2, 1, 1, 1], "1 has both its neighbours still"
    assert circles.courses[2].waits_for() == "segment 2 of peer 3"
    assert not circles.live(others), "no time has passed"
    circles.now += PATIENCE_S
    assert circles.live(others), "whoever was missed is not waited for in later rounds"
    assert circles.live() and circles.pulled() == [5] * 4
    far = circles.rehearsed()[3]
    assert float((circles.works[3].adapter - far).norm()) < 0.3 * float(far.norm())


def test_who_is_level_again_is_waited_for_again(tmp_path: Path):
    circles = Circles(tmp_path, rounds=9)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    circles.live([1, 2, 4])
    circles.now += PATIENCE_S
    circles.live([1, 2, 4], until=lambda: min(circles.pulled()[i] for i in (0, 1, 3)) == 3)
    assert circles.works[3].pulled == 1
    for _ in range(5):
        circles.meet(circles.near)
        circles.turns(3)
    assert circles.works[3].said == 4
    circles.live(until=lambda: min(circles.pulled()) == 4)
    assert not circles.live([1, 2, 4])
    assert "of peer 3" in circles.courses[2].waits_for() and "of peer 3" in circles.courses[4].waits_for()


def test_patience_begins_when_a_peer_may_speak(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    circles.turns(2)
    circles.crash(2)
    circles.now += 5 * PATIENCE_S
    assert circles.turns(2) == 0 and "to be met" in circles.courses[2].waits_for()
    circles.meet([1, 2, 3])
    assert circles.turns(2) == 0 and "segment 2 of peers 1, 3" in circles.courses[2].waits_for()
    assert circles.live() and circles.same()


def cheat(circles: Circles, number: int, member: int, place: int) -> None:
    """Give a peer another segment that a member signed under a number."""
    chains = circles.peers[number].chains
    other = Segment(1, member, place, b"other").signed(RUN, chains.link(member, place - 1) or b"", key(member))
    circles.peers[number].take(pb.Batch(run=RUN, epoch=1, segments=[other.to_proto()]))


def test_who_forks_is_left_out_and_its_weight_is_the_peer_s_own(tmp_path: Path):
    circles = Circles(tmp_path, topology="complete", codec=Identity())
    circles.live(until=lambda: min(circles.pulled()) == 2)
    cheat(circles, 1, 3, 2)
    circles.meet(circles.near)
    assert all(peer.chains.forked() == {3: 2} for peer in circles.peers.values())
    with pytest.raises(RunError, match="nobody hears it any more"):
        circles.courses[3].turn()
    before = {number: circles.works[number].adapter for number in (1, 2, 4)}
    assert circles.live([1, 2, 4], until=lambda: min(circles.pulled()[i] for i in (0, 1, 3)) == 3)
    trained = {number: train(adapter, number, 3) for number, adapter in before.items()}
    for number, own in trained.items():
        expected = own + 0.4 * sum(0.25 * (other - own) for other in trained.values())
        torch.testing.assert_close(circles.works[number].adapter, expected, rtol=1e-4, atol=1e-5)
    circles.crash(1)
    assert circles.live([1, 2, 4])


def test_a_fork_among_others_is_nobody_else_s_matter(tmp_path: Path):
    circles = Circles(tmp_path, size=6)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    cheat(circles, 3, 4, 1)
    for _ in range(2):
        circles.meet(circles.near)
    assert {n for n, peer in circles.peers.items() if peer.chains.forks} == {3, 4, 5}
    assert circles.peers[1].take(pb.Batch(forks=[fork(4, circles.peers[1].root).to_proto()])) == 0
    circles.asked.clear()
    circles.meet(circles.near)
    assert circles.asked.keys() == {"Heads"}, "neither is a proof given nor asked for again"


def test_a_lost_adapter_is_begun_anew_at_its_public_copy(tmp_path: Path):
    for damage in ("lost", "damaged", "older", "cut"):
        folder = tmp_path / damage
        folder.mkdir()
        circles = Circles(folder)
        circles.live(until=lambda circles=circles: min(circles.pulled()) == 1)
        older = circles.file(2).read_bytes()
        circles.live(until=lambda circles=circles: min(circles.pulled()) == 3)
        match damage:
            case "lost":
                circles.file(2).unlink()
            case "damaged":
                circles.file(2).write_bytes(b"damaged" + older)
            case "older":
                circles.file(2).write_bytes(older)
            case "cut":
                circles.file(2).write_bytes(b"")
        circles.crash(2)
        circles.meet(circles.near)
        circles.works[2].align()
        assert torch.equal(circles.works[2].adapter, circles.circles[2].copies[2])
        assert [text for number, text in circles.alarms if number == 2 and "begun anew at its public copy" in text]
        assert circles.live() and circles.pulled() == [5] * 4
        for number in (1, 3):
            assert torch.equal(circles.circles[number].copies[2], circles.circles[2].copies[2])


@pytest.mark.parametrize("restored", [True, False])
def test_a_lost_folder_is_given_back_by_all_neighbours_before_a_word(tmp_path: Path, restored: bool):
    circles = Circles(tmp_path, topology="complete")
    circles.live(until=lambda: min(circles.pulled()) == 2)
    circles.file(2).unlink()
    circles.start(2, MemoryStore(), restored=restored)
    for other in (1, 3):
        circles.exchange(2, other)
        assert circles.turns(2) == 0 and "to be met" in circles.courses[2].waits_for()
    assert circles.works[2].said == 2
    circles.exchange(2, 4)
    assert circles.turns(2) > 0
    assert circles.live() and not any(peer.chains.forks for peer in circles.peers.values())


def test_an_adapter_ahead_of_all_that_is_known_goes_on_from_itself(tmp_path: Path):
    circles = Circles(tmp_path, size=1)
    assert circles.live()
    own = circles.works[1].adapter
    circles.start(1, MemoryStore())
    assert circles.works[1].pulled == 5
    circles.works[1].align()
    assert (circles.works[1].trained, circles.works[1].pulled) == (0, 0)
    assert torch.equal(circles.works[1].adapter, own)


def test_what_is_not_right_moves_nothing_anywhere_and_stops_nobody(tmp_path: Path):
    circles = Circles(tmp_path, largest_norm=100.0)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    said = circles.peers[3].chains.segments(3, 1, 1)[0].body
    for body in (b"no payload", said):  # the second is right, in another place
        number = circles.works[3].said + 1
        copies = [circles.circles[n].copies[3].clone() for n in (2, 3, 4)]
        assert circles.peers[3].publish(body, 1, number) is not None
        circles.live([1, 2, 4], until=lambda: False)
        circles.meet(circles.near)
        circles.live(until=lambda number=number: min(circles.pulled()) >= number)
        assert all(
            torch.equal(circles.circles[n].copies[3], before) for n, before in zip((2, 3, 4), copies, strict=True)
        )
    for number in (2, 3):
        told = [n for n, text in circles.alarms if f"peer 3 said in round {number} moves nothing" in text]
        assert sorted(told) == [2, 3, 4], "each says so once"
    assert circles.live()


def test_a_round_whose_training_fails_goes_on_with_what_others_learn(tmp_path: Path):
    def failing(adapter, peer, number):
        if (peer, number) == (2, 2):
            raise RunError("diverged")
        return adapter / 0 if (peer, number) == (2, 3) else train(adapter, peer, number)

    circles = Circles(tmp_path, step=failing)
    assert circles.live()
    assert [text[:28] for _, text in circles.alarms] == ["round 2 has no local steps: ", "round 3 has no local steps: "]
    assert all(torch.isfinite(work.adapter).all() for work in circles.works.values())


@pytest.mark.parametrize("size", [4, 8])
def test_nobody_is_given_what_is_not_for_it(tmp_path: Path, size: int):
    circles = Circles(tmp_path, size)
    assert circles.live()
    for number, near in circles.near.items():
        assert set(circles.peers[number].chains.keys) == {number, *near}
        assert circles.came[number] == dict.fromkeys(near, 5), "each of two neighbours' segments comes once"


def test_votes_are_nothing_where_no_epoch_is_closed(tmp_path: Path):
    circles = Circles(tmp_path)
    vote = Vote(1, 0, Kind.FOR, 3, bytes(32)).signed(RUN, key(3))
    assert circles.peers[2].take(pb.Batch(run=RUN, epoch=1, votes=[vote.to_proto()])) == 0
    assert not circles.peers[2].closing.votes


def test_too_few_who_are_left_move_nobody(tmp_path: Path):
    circles = Circles(tmp_path, topology="complete", strategy=Krum(0))
    circles.live(until=lambda: min(circles.pulled()) == 1)
    for member in (2, 3):
        cheat(circles, 1, member, 1)
    before = circles.works[1].adapter
    circles.meet([1, 4])
    assert circles.live([1, 4], until=lambda: circles.works[1].pulled == 2)
    assert torch.equal(circles.works[1].adapter, train(before, 1, 2))


def test_a_body_that_is_too_large_is_refused(tmp_path: Path):
    circles = Circles(tmp_path)
    ledger = GossipLedger(circles.manner, START)
    assert ledger.fold(ledger.beginning(), 1, {}) == ledger.beginning()
    ledger.check(bytes(ledger.most_body))
    for body in (b"", bytes(ledger.most_body + 1)):
        with pytest.raises(PayloadError, match="bytes"):
            ledger.check(body)
