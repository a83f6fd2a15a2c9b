"""Snapshots that lie, folders that crash or are too old, limits that are broken: each with what must come of it."""

from dataclasses import replace

import pytest

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import FedpeftError, IdentityError, JournalError, PayloadError
from fedpeft.keys.signing import digest
from fedpeft.peers.answering import answer
from fedpeft.peers.cut import Kind
from fedpeft.peers.peer import Peer
from fedpeft.peers.segment import Fork
from fedpeft.peers.snapshot import Snapshot
from fedpeft.peers.store import FolderStore, MemoryStore
from fedpeft.peers.terms import Terms
from tests.peers.swarm import ORGANISER, RUN, HashLedger, Swarm, chain, closed, filled, key, roster


def poisoned(root: bytes) -> dict[str, Snapshot]:
    """Snapshots for a peer in the second epoch, each wrong in one thing."""
    four, five, older = roster([1, 2, 3, 4], serial=2), roster([1, 2, 3, 4, 5], serial=3), roster([6, 7, 8])
    good = closed(four, four, [1, 2, 3], epoch=2, before=root)
    elsewhere = replace(good.cut, barred=(4,))
    return {
        "another state": replace(good, state=b"x" * 32),
        "votes of too few": closed(four, four, [1, 2], epoch=2, before=root),
        "votes of others": closed(four, four, [6, 7, 8], epoch=2, before=root),
        "votes for another cut": replace(good, certificate=replace(good.certificate, cut=elsewhere)),
        "a roster that nobody decided": replace(good, next=five),
        "an older roster": closed(older, older, [6, 7, 8], epoch=2, before=root),
        "members of long ago, under the newest roster": closed(five, older, [6, 7, 8], epoch=7),
        "members who come later": closed(five, five, [1, 2, 3, 5], epoch=2, before=root),
        "after another cut": closed(four, four, [1, 2, 3], epoch=2, before=bytes(32)),
    }


@pytest.mark.parametrize("name", poisoned(bytes(32)))
def test_70_a_poisoned_snapshot_is_refused(name: str) -> None:
    four, store = roster([1, 2, 3, 4], serial=2), MemoryStore()
    peer = Peer(Terms(RUN, ORGANISER.public), key(1), four, HashLedger(), store)
    assert peer.adopt(closed(four, four, [1, 2, 3]).to_bytes())
    before = peer.epoch, peer.root, peer.state, store.snapshot(), list(store.records())
    with pytest.raises((IdentityError, PayloadError)):
        peer.adopt(poisoned(peer.root)[name].to_bytes())
    assert (peer.epoch, peer.root, peer.state, store.snapshot(), list(store.records())) == before
    assert peer.adopt(closed(four, four, [1, 2, 3], epoch=2, before=peer.root).to_bytes())
    assert peer.adopt(closed(four, four, [1, 2, 3], epoch=7).to_bytes()), "many epochs at once"


def test_70_what_is_kept_of_a_snapshot_is_what_was_checked() -> None:
    four = roster([1, 2, 3, 4])
    store = MemoryStore()
    peer = Peer(Terms(RUN, ORGANISER.public), key(1), four, HashLedger(), store)
    data = closed(four, four, [1, 2, 3]).to_bytes()
    assert peer.adopt(data + b"\xfa\x3f\x80\x80\x04" + bytes(1 << 16))
    assert store.snapshot() == data
    assert not peer.adopt(data), "it is no news"


def test_71_a_crash_after_writing_and_before_publishing_is_no_fork() -> None:
    swarm = Swarm(4)
    swarm.meet()
    lost = swarm.publish(1)
    peer = swarm.start(1, swarm.stores[1].crashed())
    assert peer.chains.segments(1) == [lost]
    assert not peer.may_speak(), "others come first"
    swarm.meet()
    again = swarm.publish(1, b"another")
    assert again is not None
    assert again.number == 2
    swarm.meet()
    assert swarm.same()
    assert not any(peer.chains.forks for peer in swarm.peers.values())


def test_71_a_vote_that_was_written_is_not_given_again() -> None:
    swarm = filled()
    swarm.meet()
    voted: dict[tuple[int, int, Kind], bytes] = {}
    for _ in range(12):
        for number in list(swarm.peers):
            swarm.advance(1.0, [number])
            peer = swarm.start(number, swarm.stores[number].crashed())
            for (view, kind), votes in peer.closing.votes.items():
                if number in votes and peer.epoch == 1:
                    place = number, view, kind
                    assert voted.setdefault(place, votes[number].cut) == votes[number].cut
        swarm.meet()
    assert voted
    assert {peer.epoch > 1 for peer in swarm.peers.values()} == {True}


def old_backup() -> tuple[Swarm, MemoryStore]:
    swarm = Swarm(4)
    swarm.meet()
    backup = swarm.stores[1].crashed()
    swarm.publish(1)
    swarm.meet()
    return swarm, backup


def test_72_an_old_folder_finds_its_own_later_head_and_sits_out() -> None:
    swarm, backup = old_backup()
    peer = swarm.start(1, backup)
    assert peer.chains.count(1) == 0
    assert swarm.publish(1) is None, "before others were met"
    swarm.meet()
    assert peer.chains.count(1) == 1
    assert any(who == 1 and "others hold segment 1 of this peer" in text for who, text in swarm.alarms)
    silent = []
    while not peer.may_speak():
        silent.append(peer.epoch)
        assert swarm.publish(1) is None
        said = peer.advance(swarm.now)
        assert not said.votes
        assert not said.proposals
        assert peer.epoch < 4
        for number in (2, 3, 4):
            while swarm.publish(number):
                pass
        swarm.meet()
        swarm.advance(2.0)
    assert set(silent) == {1, 2}
    assert swarm.publish(1)
    swarm.meet()
    assert swarm.same()


def test_72_a_forgotten_vote_shows_too() -> None:
    swarm = filled()
    swarm.meet()
    backup = swarm.stores[1].crashed()
    swarm.advance(0.0)
    swarm.meet()
    swarm.advance(0.0)
    swarm.all_exchange([2, 1])
    assert not swarm.alarms
    peer = swarm.start(1, backup)
    swarm.exchange(1, 2)
    assert any(who == 1 and "others hold a" in text for who, text in swarm.alarms)
    assert not peer.may_speak()


def test_72_to_sit_out_outlasts_epochs_and_restarts() -> None:
    swarm, backup = old_backup()
    swarm.start(1, backup, restored=True)
    swarm.start(1, swarm.stores[1].crashed())
    assert not swarm.peers[1].may_speak()
    assert swarm.exchange(1, 2)
    assert swarm.exchange(1, 3)
    swarm.start(1, swarm.stores[1].crashed())
    assert swarm.exchange(1, 2)
    assert swarm.exchange(1, 3)
    assert not swarm.peers[1].may_speak(), "which epoch is open, two of four cannot tell"
    assert swarm.exchange(1, 4)
    swarm.close()
    swarm.meet()
    assert swarm.peers[1].epoch == 2
    assert not swarm.peers[1].may_speak()
    swarm.start(1, swarm.stores[1].crashed())
    swarm.meet()
    assert not swarm.peers[1].may_speak(), "the epoch after it has a folder of its own, and that says so too"
    swarm.close()
    swarm.meet()
    assert swarm.peers[1].may_speak()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_72_of_three_all_others_give_back_what_was_forgotten(size: int) -> None:
    swarm = Swarm(size)
    swarm.meet()
    swarm.publish(1)
    swarm.meet()
    peer = swarm.start(1, MemoryStore(), restored=True)
    assert peer.may_speak() == (size == 1)
    swarm.meet()
    assert peer.may_speak()
    assert peer.chains.count(1) == (size > 1)
    swarm.start(1, swarm.stores[1].crashed())  # type: ignore[attr-defined]
    for other in range(2, size + 1):
        assert not swarm.peers[1].may_speak(), "as whoever starts"
        swarm.exchange(1, other)
    assert swarm.peers[1].may_speak()
    swarm.meet()
    swarm.close()


def test_72_a_silent_neighbourhood_makes_nobody_speak() -> None:
    swarm, backup = old_backup()
    peer = swarm.start(1, backup, restored=True)
    swarm.network.split([[1], [2, 3, 4]])
    for _ in range(20):
        swarm.advance(10.0)
        swarm.exchange(1, 2)
    assert not peer.may_speak()
    assert swarm.publish(1) is None


def test_73_what_breaks_the_limits_breaks_them_everywhere() -> None:
    swarm = Swarm(4, most_segments=2, liars=(4,))
    swarm.meet()
    root = swarm.peers[1].root
    long = chain([b"1", b"2", b"3"], 4, root)
    for number, segments, taken in ((1, long, 2), (2, chain([bytes(33)], 4, root), 0), (3, chain([b"!"], 4, root), 0)):
        assert swarm.push(number, segments) == taken
    pair = [chain([body], 4, root)[0] for body in (b"!", bytes(33))]
    proof = Fork(swarm.peers[1].chains.link(4, 0) or b"", *pair).to_proto()
    for peer in swarm.peers.values():
        assert peer.take(pb.Batch(run=RUN, epoch=1, forks=[proof])) == 0
    swarm.meet()
    assert swarm.same()
    assert swarm.peers[2].chains.count(4) == 2
    for body in (b"!", bytes(33), b""):
        with pytest.raises(PayloadError):
            swarm.peers[1].publish(body, 1, 1)


def test_a_folder_of_another_run_is_not_used() -> None:
    store, other = MemoryStore(), digest("another run")
    Peer(Terms(RUN, ORGANISER.public), key(1), roster([1, 2]), HashLedger(), store)
    with pytest.raises(JournalError, match="the store is of run"):
        Peer(Terms(other, ORGANISER.public), key(1), roster([1, 2], run=other), HashLedger(), store)


def test_a_roster_of_somebody_else_starts_nothing() -> None:
    with pytest.raises(IdentityError, match="not the organiser's"):
        Peer(Terms(RUN, key(1).public), key(1), roster([1, 2]), HashLedger(), MemoryStore())
    swarm = Swarm(4)
    forged = replace(roster([1], serial=9), signature=bytes(64))
    assert swarm.peers[1].take(pb.Batch(run=RUN, roster=forged.to_proto())) == 0
    assert swarm.peers[1].newest_roster.serial == 1


def test_a_member_that_is_dismissed_watches() -> None:
    swarm = filled(5)
    swarm.peers[1].take(pb.Batch(run=RUN, roster=roster([1, 2, 3, 4], serial=2).to_proto()))
    swarm.meet()
    swarm.close()
    swarm.meet()
    gone = swarm.peers[5]
    assert (gone.number, gone.done(), gone.may_speak()) == (0, True, False)
    assert swarm.publish(5) is None
    for number in (1, 2, 3, 4):
        assert swarm.publish(number)
    swarm.meet()
    swarm.close()
    swarm.meet()
    assert swarm.same()


def test_an_epoch_in_which_somebody_never_speaks_ends_all_the_same() -> None:
    swarm = filled(4, liars=(4,))
    swarm.meet()
    swarm.advance(0.0)
    swarm.advance(9.0)
    swarm.meet()
    assert not any(peer.closing.votes for peer in swarm.peers.values())
    swarm.close()
    assert swarm.now < 40.0


def test_a_folder_holds_a_peer(tmp_path_factory: pytest.TempPathFactory) -> None:
    swarm = Swarm(3)
    folders = {number: tmp_path_factory.mktemp(f"peer-{number}") for number in swarm.peers}
    for number, folder in folders.items():
        swarm.start(number, FolderStore(folder))
    swarm.meet()
    for _ in range(2):
        for number in swarm.peers:
            swarm.publish(number)
        swarm.meet()
        swarm.close()
        swarm.meet()
    before = swarm.peers[1].state
    for number, folder in folders.items():
        store = swarm.stores[number]
        assert isinstance(store, FolderStore)
        store.close()
        swarm.start(number, FolderStore(folder))
    assert swarm.peers[1].state == before
    assert swarm.peers[1].epoch == 3
    swarm.meet()
    assert swarm.same()
    for store in swarm.stores.values():
        store.close()  # type: ignore[attr-defined]


def test_errors_are_of_one_tree() -> None:
    swarm = Swarm(4)
    for method, request in (("Nothing", b""), ("Heads", b"\xff"), ("Push", pb.Batch(run=b"x").SerializeToString())):
        with pytest.raises(FedpeftError):
            list(answer(swarm.peers[1], method, request))
