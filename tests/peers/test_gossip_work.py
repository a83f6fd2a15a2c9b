"""Gossip by real peers: whatever stops, the bits are those of the simulation; who lies or is silent costs little."""

from pathlib import Path

import pytest
import torch

from fedpeft._proto import peer_pb2 as pb
from fedpeft.codecs import QSGD, Identity, Rotated
from fedpeft.errors import PayloadError, RunError
from fedpeft.peers.cut import Kind, Vote
from fedpeft.peers.gossip_ledger import GossipLedger
from fedpeft.peers.segment import Segment
from fedpeft.peers.store import MemoryStore
from fedpeft.strategies import Krum, Median
from tests.peers.circles import PATIENCE_S, START, Circles, train
from tests.peers.swarm import RUN, closed, fork, key, roster, terms


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
    """A lapse in which all miss each other: they go on at one speed, and each tells as late as the others."""
    circles = Circles(tmp_path, rounds=9)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    for number in circles.near:
        circles.turns(number)
    circles.now += PATIENCE_S
    for number in circles.near:
        assert circles.turns(number, 1) == 1 and circles.works[number].lacking(2), "missed by its neighbours"
    circles.meet(circles.near)
    assert circles.pulled() == [2] * 4
    for number in circles.near:
        circles.turns(number)
        first, second = circles.near[number]
        assert circles.courses[number].waits_for() == f"segment 3 of peers {first}, {second}"
    assert circles.live()


def test_who_is_behind_by_more_than_the_round_is_not_waited_for(tmp_path: Path):
    circles = Circles(tmp_path, rounds=9)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    circles.live([1, 2, 4])
    circles.now += PATIENCE_S
    assert circles.live([1, 2, 4], until=lambda: min(circles.pulled()[i] for i in (0, 1, 3)) == 4)
    assert circles.works[3].said == 1
    circles.turns(3, 1)
    circles.meet(circles.near)
    assert circles.works[2].lacking(3) == {3}
    assert circles.turns(2, 2) == 2 and circles.works[2].pulled == 5


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
    assert circles.courses[3].turn() is None
    circles.now += PATIENCE_S
    with pytest.raises(RunError, match="nobody hears it any more"):
        circles.courses[3].turn()
    before = {number: circles.works[number].adapter for number in (1, 2, 4)}
    assert circles.live([1, 2, 4], until=lambda: min(circles.pulled()[i] for i in (0, 1, 3)) == 3)
    trained = {number: train(adapter, number, 3) for number, adapter in before.items()}
    for number, own in trained.items():
        expected = own + 0.4 * sum(0.25 * (other - own) for other in trained.values())
        torch.testing.assert_close(circles.works[number].adapter, expected, rtol=1e-4, atol=1e-5)
    copies = [circles.circles[1].copies[n] for n in (1, 2, 4)]
    far = float((circles.works[1].adapter - torch.stack(copies).mean(0)).norm())
    assert circles.works[1].distance() == pytest.approx(far, rel=1e-4)
    circles.crash(1)
    assert circles.live([1, 2, 4])


def test_a_proof_crosses_the_one_whom_it_is_of(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 2)
    cheat(circles, 1, 2, 2)
    circles.exchange(1, 2)
    assert circles.peers[2].chains.forked() == {2: 2}, "who holds a proof gives it"
    assert circles.courses[2].turn() is None
    assert circles.courses[2].waits_for() == "its neighbours to hear that it is barred"
    circles.exchange(2, 3)
    assert circles.peers[3].chains.forked() == {2: 2}
    circles.crash(2)
    assert circles.courses[2].turn() is None
    assert not [text for _, text in circles.alarms if "the own adapter" in text], "its log is cut, and not old"
    circles.now += PATIENCE_S
    with pytest.raises(RunError, match="nobody hears it any more"):
        circles.courses[2].turn()


def test_who_is_barred_while_it_works_keeps_its_own_place(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 2)
    work, circle, before = circles.works[2], circles.circles[2], circles.works[2].adapter
    far = work.distance()
    cheat(circles, 2, 2, 2)
    assert circles.peers[2].chains.forks.keys() == {2}
    assert work.distance() == far
    work.pull()
    assert torch.equal(work.adapter, before + circle.pull(2))


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
    circles = Circles(tmp_path, 7, "complete")
    circles.live(until=lambda: min(circles.pulled()) == 2)
    circles.file(2).unlink()
    circles.start(2, MemoryStore(), restored=restored)
    for other in (1, 3, 4, 5, 6):
        circles.exchange(2, other)
        assert circles.turns(2) == 0 and "to be met" in circles.courses[2].waits_for()
    assert circles.works[2].said == 2
    circles.exchange(2, 7)
    assert circles.turns(2) > 0
    circles.crash(2)
    for other in (1, 3, 4, 5):
        assert not circles.peers[2].may_speak()
        circles.exchange(2, other)
    assert circles.peers[2].may_speak(), "what was given back is not forgotten again"
    assert circles.live() and not any(peer.chains.forks for peer in circles.peers.values())


def test_an_adapter_ahead_of_the_log_shows_that_it_is_old(tmp_path: Path):
    circles = Circles(tmp_path, 7, "complete")
    circles.live(until=lambda: min(circles.pulled()) == 2)
    old = circles.stores[1].crashed()
    circles.turns(1, 1)
    circles.exchange(1, 7)
    circles.now += PATIENCE_S
    circles.turns(1, 1)
    assert circles.works[1].pulled == 3
    circles.start(1, old)
    assert [text for number, text in circles.alarms if number == 1 and "the own adapter holds round 3" in text]
    for other in (2, 3, 4, 5, 6):
        circles.exchange(1, other)
        assert circles.turns(1) == 0 and circles.ended[1][-1] == 2, "round 3 is not done by what is known"
    circles.exchange(1, 7)
    assert circles.works[1].said == 3
    assert circles.live() and circles.ended[1].count(3) == 1
    assert not any(peer.chains.forks for peer in circles.peers.values())


def test_an_adapter_ahead_of_all_that_neighbours_know_goes_on_from_itself(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 2)
    old = circles.stores[1].crashed()
    circles.turns(1, 1)
    circles.now += PATIENCE_S
    circles.turns(1, 1)
    own = circles.works[1].adapter
    circles.start(1, old)
    circles.meet(circles.near)
    circles.works[1].align()
    assert (circles.works[1].trained, circles.works[1].pulled) == (2, 2)
    assert torch.equal(circles.works[1].adapter, own)
    circles.crash(1)
    assert circles.alarms and len(circles.alarms) == 1, "it is not ahead any more"
    assert circles.live()


def test_who_has_no_neighbours_waits_for_nobody_to_be_given_its_log(tmp_path: Path):
    circles = Circles(tmp_path, size=1)
    assert circles.live()
    own = circles.works[1].adapter
    circles.start(1, MemoryStore())
    assert circles.works[1].pulled == 5 and circles.peers[1].may_speak()
    circles.works[1].align()
    assert circles.works[1].pulled == 0 and torch.equal(circles.works[1].adapter, own)
    assert circles.live()


def test_an_adapter_of_another_run_is_none(tmp_path: Path):
    circles = Circles(tmp_path)
    assert circles.live()
    other = Circles(tmp_path, run=b"another run".ljust(16))
    assert other.works[2].pulled == 0 and not other.alarms
    assert other.live()


def test_how_far_the_own_adapter_is_does_not_change_by_a_restart(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 3)
    copies = torch.stack([circles.circles[2].copies[n] for n in (1, 2, 3)])
    far = circles.works[2].distance()
    assert far > 0 and far == pytest.approx(float((circles.works[2].adapter - copies.mean(0)).norm()), rel=1e-4)
    circles.start(2, circles.stores[2])
    assert circles.works[2].distance() == far


def test_no_snapshot_is_gone_on_from(tmp_path: Path):
    circles = Circles(tmp_path)
    circles.live(until=lambda: min(circles.pulled()) == 1)
    members = roster(circles.near)
    peer, state = circles.peers[1], circles.peers[1].state
    snapshot = closed(members, members, circles.near, before=terms().root(members.hash), state=state)
    assert not peer.adopt(snapshot.to_bytes()) and peer.epoch == 1


def test_rosters_that_were_followed_are_not_kept(tmp_path: Path):
    circles = Circles(tmp_path)
    for serial in range(2, 9):
        assert circles.peers[1].take(pb.Batch(roster=roster(circles.near, serial).to_proto())) == 1
    assert {known.serial for known in circles.peers[1]._rosters.values()} == {1, 8}


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
    told = [(n, text) for n, text in circles.alarms if "moves nothing" in text]
    assert sorted(n for n, _ in told) == [2, 3, 4] and all("peer 3 said in round 2" in text for _, text in told)
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


@pytest.mark.parametrize(
    ("codec", "far"), [(Identity("float16"), 1e5), (Identity(), 1e38), (QSGD(), 1e38), (Rotated(1), 1e38)], ids=repr
)
def test_a_round_that_goes_too_far_goes_as_far_as_may_be(tmp_path: Path, codec, far: float):
    def large(adapter, peer, number):
        return torch.full_like(adapter, far) if (peer, number) == (2, 2) else train(adapter, peer, number)

    circles = Circles(tmp_path, codec=codec, step=large, largest_norm=10.0)
    circles.live(until=lambda: circles.works[2].said == 2)
    before = circles.circles[2].copies[2].clone()
    circles.live(until=lambda: circles.works[2].pulled == 2)
    assert 0 < float((circles.circles[2].copies[2] - before).norm()) <= 10.0
    circles.crash(2)
    assert circles.live() and not circles.alarms


def test_what_a_codec_cannot_say_is_left_off(tmp_path: Path):
    def large(adapter, peer, number):
        return torch.full_like(adapter, 1e5) if (peer, number) == (2, 2) else train(adapter, peer, number)

    circles = Circles(tmp_path, codec=Identity("float16"), step=large, largest_norm=1e9)
    circles.live(until=lambda: circles.works[2].said == 2)
    circles.crash(2)
    assert circles.live()
    assert {number for number, _ in circles.alarms} == {2}
    assert [text[:28] for _, text in circles.alarms] == ["round 2 has no local steps: "]


def test_an_adapter_that_cannot_be_said_is_begun_anew(tmp_path: Path):
    circles = Circles(tmp_path, codec=Identity("float16"), largest_norm=1e9)
    circles.live(until=lambda: min(circles.pulled()) == 2)
    circles.works[2].adapter = torch.full_like(START, 1e5)
    assert circles.live(until=lambda: min(circles.pulled()) == 3)
    assert [text[:34] for _, text in circles.alarms][-1] == "round 3 begins anew at the public "
    assert circles.live()


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
