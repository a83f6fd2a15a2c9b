import threading
from pathlib import Path

import pytest

from fedpeft.errors import RunError, UnreachableError
from fedpeft.peers.exchange import Call, exchange
from fedpeft.peers.peer import Peer
from tests.runtime.peer_world import Sum, Telling, World

ALL = ("a", "b", "c", "d")


def test_four_peers_end_every_epoch_with_one_state(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.admit(*ALL)
        for name in ALL:
            world.start(name)
        world.until(lambda: world.closed(3, *ALL))
        assert all(world.states[name] == world.states["a"] for name in ALL)
        assert world.states["a"].keys() == {1, 2, 3}
        assert world.nodes["a"].waits_for() == "the run is over"


def test_who_comes_late_and_who_only_dials_end_with_the_same_state(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        world.admit(*ALL)
        for name in ALL[:3]:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL[:3]))
        late = world.start("d", dials=True)
        assert late.address == ""
        world.until(lambda: world.closed(3, *ALL))
        assert len({world.states[name][3] for name in ALL}) == 1


def test_who_is_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    with World(tmp_path, epochs=4) as world:
        world.admit(*ALL)
        for name in ALL:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL))
        world.stop("b")
        world.until(lambda: world.closed(2, "a", "c", "d"))
        world.start("b")
        world.until(lambda: world.closed(4, *ALL))
        assert len({world.states[name][4] for name in ALL}) == 1
        assert not [text for text in world.said if "signed two" in text]


def test_a_new_member_is_let_in_by_a_roster_that_one_peer_was_given(tmp_path: Path) -> None:
    with World(tmp_path, epochs=3) as world:
        world.admit(*ALL[:3])
        for name in ALL[:3]:
            world.start(name)
        world.until(lambda: world.closed(1, *ALL[:3]))
        world.nodes["a"].peer.take(world.batch(world.admit("d")))
        world.start("d")
        world.until(lambda: world.closed(3, *ALL))
        assert len({world.states[name][3] for name in ALL}) == 1
        assert [m.name for m in world.nodes["b"].peer.roster.members] == list(ALL)


def test_addresses_spread_by_word_of_mouth(tmp_path: Path) -> None:
    with World(tmp_path, epochs=2) as world:
        world.admit(*ALL)
        first = world.start("a")
        for name in ALL[1:]:
            world.start(name, a=first.address)
        world.until(lambda: world.closed(2, *ALL))
        met = [node.contacts.seen(n) for node in world.nodes.values() for n in range(1, 5) if n != node.peer.number]
        world.until(lambda: all(contact.worked for contact in met))


def test_a_member_that_keeps_a_peer_waiting_does_not_keep_it_from_voting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, names, hung = threading.Event(), ALL[:3], []

    def hanging(peer: Peer, other: int, call: Call) -> None:
        if peer.number == 1 and peer.may_speak():
            hung.append(other)
            over.wait()
            raise UnreachableError("at last")
        exchange(peer, other, call)

    monkeypatch.setattr("fedpeft.runtime.peer.node.exchange", hanging)
    with World(tmp_path) as world:  # of three, all must vote
        world.admit(*names)
        try:
            for name in names:
                world.start(name)
            world.until(lambda: world.closed(3, *names))
            assert len(hung) == 1
        finally:
            over.set()


@pytest.mark.parametrize("live", [True, False])
def test_a_work_begins_where_it_says_that_it_does(tmp_path: Path, live: bool) -> None:
    work, names = Telling(live), ALL[:2]
    with World(tmp_path, epochs=2, segments=3, patience_s=60) as world:
        world.admit(*names)
        world.start("a", work=work)
        world.start("b")
        world.until(lambda: world.closed(2, *names))
        assert work.began.keys() == {(epoch, number) for epoch in (1, 2) for number in (1, 2, 3)}
        for epoch, settled in ((1, bytes(8)), (2, world.states["a"][1])):
            for number in (1, 2, 3):
                own = [Sum().segment(b"", epoch, 1, before) for before in range(1, number)]
                least = int.from_bytes(Sum().fold(settled, epoch, {1: own}), "little")
                began = int.from_bytes(work.began[epoch, number], "little")
                assert began >= least if live else work.began[epoch, number] == settled


@pytest.mark.parametrize("failure", [RunError("training diverged"), b""])
def test_who_cannot_train_goes_on_voting_and_trains_in_the_next_epoch(
    tmp_path: Path, failure: Exception | bytes
) -> None:
    work, names = Telling(fails={1: failure}), ALL[:3]
    with World(tmp_path, epochs=2) as world:  # of three, all must vote
        world.admit(*names)
        a = world.start("a", work=work)
        for name in names[1:]:
            world.start(name)
        world.until(lambda: world.closed(2, *names))
        assert len({world.states[name][2] for name in names}) == 1
        assert work.asked[1] == 1
        assert [text for text in world.said if "nothing more is published in epoch 1" in text]
        assert (2, 2) in work.began
        assert a._broken is None
