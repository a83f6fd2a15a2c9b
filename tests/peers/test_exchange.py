"""What two peers say to each other: it levels them, it costs little, and no bytes break it."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import FedpeftError, RefusedError
from fedpeft.keys.signing import digest
from fedpeft.peers.answering import answer, summary
from fedpeft.peers.cut import Kind, Proposal, Vote
from fedpeft.peers.exchange import Call, exchange
from fedpeft.peers.peer import Peer
from tests.peers.swarm import RUN, Swarm, chain, fork, key, roster

METHODS = ["Heads", "Segments", "Push", "Proof", "Snapshot"]


def full(liars: tuple[int, ...] = (4,)) -> Swarm:
    """A swarm in its second epoch, with segments, a fork, votes and a proposal."""
    swarm = Swarm(4, most_segments=8, liars=liars)
    swarm.meet()
    swarm.close()
    swarm.meet()
    for number in (1, 2, 3):
        for _ in range(number):
            swarm.publish(number)
    swarm.peers[1].take(pb.Batch(epoch=2, forks=[fork(4, swarm.peers[1].root, epoch=2).to_proto()]))
    for view in range(3):
        vote = Vote(2, view, Kind.FOR, 4, b"").signed(RUN, key(4)).to_proto()
        swarm.peers[1].take(pb.Batch(epoch=2, votes=[vote]))
    return swarm


def counted(swarm: Swarm, caller: int, callee: int) -> list[str]:
    """The methods that an exchange calls."""
    called: list[str] = []
    ask = swarm.network.call(caller, callee)

    def recording(method: str, request: bytes) -> list[bytes]:
        called.append(method)
        return list(ask(method, request))

    exchange(swarm.peers[caller], callee, recording)
    return called


def test_peers_that_hold_the_same_say_so_in_a_few_bytes() -> None:
    swarm = full()
    swarm.meet()
    swarm.network.sent.clear()
    assert counted(swarm, 1, 2) == ["Heads"]
    assert sum(swarm.network.sent.values()) < 300


@pytest.mark.parametrize(("held", "snapshots"), [(True, [True]), (False, [True, False])])
def test_who_holds_what_an_epoch_was_closed_with_is_not_sent_the_state(held: bool, snapshots: list[bool]) -> None:
    swarm = Swarm(4)
    swarm.meet()
    for number in (1, 2, 3):
        swarm.publish(number)
    swarm.meet((1, 2, 3, 4) if held else (1, 2, 3))
    swarm.close((1, 2, 3))
    late, lean, states = swarm.peers[4], [], []
    ask = swarm.network.call(4, 1)

    def recording(method: str, request: bytes) -> list[bytes]:
        replies = list(ask(method, request))
        if method == "Snapshot":
            lean.append(pb.SnapshotRequest.FromString(request).lean)
            data = b"".join(pb.Piece.FromString(reply).data for reply in replies)
            states.append(bool(pb.Snapshot.FromString(data).state))
        return replies

    exchange(late, 1, recording)
    assert lean == snapshots and states == [not asked for asked in snapshots]
    assert (late.epoch, late.root, late.state) == (2, swarm.peers[1].root, swarm.peers[1].state)
    assert pb.Snapshot.FromString(late.snapshot() or b"").state


def test_who_is_several_epochs_behind_is_sent_the_state_at_once() -> None:
    swarm = Swarm(4)
    swarm.meet()
    for _ in range(2):
        swarm.publish(1)
        swarm.close((1, 2, 3))
        swarm.meet((1, 2, 3))
    assert counted(swarm, 4, 1).count("Snapshot") == 1
    assert swarm.same((1, 4))


@pytest.mark.parametrize(("caller", "callee"), [(1, 2), (2, 1), (3, 1)])
def test_one_exchange_levels_two(caller: int, callee: int) -> None:
    swarm = full()
    swarm.exchange(caller, callee)
    one, other = (summary(swarm.peers[number]) for number in (caller, callee))
    assert one == other
    assert swarm.peers[caller].current() == swarm.peers[callee].current()


@pytest.mark.parametrize("asking", [0, 1])
def test_a_vote_that_was_shown_to_one_of_two_alone_comes_out(asking: int) -> None:
    """Member 1 voted for a cut, and told somebody else that it voted for none; of both, who voted is the same."""
    both = [Swarm(4, liars=(1, 2, 3)).peers[4] for _ in range(2)]
    proposal = Proposal(0, -1, both[0]._open.propose(both[0].roster)).signed(key(2))
    for peer, shown in zip(both, (proposal.cut.hash, b""), strict=True):
        votes = [Vote(1, 0, Kind.FOR, 1, shown), *(Vote(1, 0, Kind.FOR, n, proposal.cut.hash) for n in (2, 3))]
        signed = [vote.signed(RUN, key(vote.peer)).to_proto() for vote in votes]
        assert peer.take(pb.Batch(epoch=1, votes=signed, proposals=[proposal.to_proto()])) == 4
    assert [peer.closing.valid()[0] for peer in both] == [0, -1]
    exchange(both[asking], 3, lambda method, request: answer(both[1 - asking], method, request))
    assert [peer.closing.valid() for peer in both] == [(0, proposal.cut)] * 2
    assert summary(both[0]) == summary(both[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_two_branches_are_found_to_differ(seed: int) -> None:
    random = Random(seed)
    swarm = Swarm(4, most_segments=40, liars=(4,))
    same, lengths = random.randrange(20), [random.randrange(1, 20), random.randrange(1, 20)]
    for branch, length, number in zip("ab", lengths, (1, 2), strict=True):
        bodies = [b"same"] * same + [f"{branch}{i}".encode() for i in range(length)]
        swarm.push(number, chain(bodies, 4, swarm.peers[1].root))
    called = counted(swarm, *random.sample([1, 2], 2))
    assert called.count("Heads") <= 8, "by halving"
    for number in (1, 2):
        assert swarm.peers[number].chains.forked() == {4: same + 1}


def test_a_liar_gets_nowhere_by_claiming_heads() -> None:
    swarm = Swarm(4)
    claimed = summary(swarm.peers[1])
    claimed.digest = b"another"
    for peer in (2, 3, 99):
        claimed.heads.add(peer=peer, count=(1 << 32) - 1, hash=bytes(32))
    claimed.forked.add(peer=3, count=1)
    claimed.votes.add(view=7, kind=1, members=b"\xff" * 9)
    called: list[str] = []

    def lying(method: str, request: bytes) -> list[bytes]:
        called.append(method)
        return [claimed.SerializeToString()] if method == "Heads" else [b""]

    exchange(swarm.peers[1], 2, lying)
    assert len(called) < 5


@pytest.mark.parametrize("seed", range(6))
def test_probes_that_are_answered_at_random_come_to_an_end(seed: int) -> None:
    random, swarm = Random(seed), Swarm(4, most_segments=1000, liars=(4,))
    peer = swarm.peers[1]
    swarm.push(1, chain([b"x"] * 200, 4, peer.root))
    calls = [0]

    def lying(method: str, request: bytes) -> list[bytes]:
        calls[0] += 1
        if method != "Heads":
            return [b""]
        asked = pb.Heads.FromString(request)
        reply = summary(peer)
        reply.digest = random.randbytes(8)
        reply.heads[0].hash = random.randbytes(32)
        for probe in asked.probes:
            link = peer.chains.link(probe.peer, probe.count)
            reply.probes.add(peer=probe.peer, count=probe.count, hash=random.choice([link, bytes(32), b""]))
        return [reply.SerializeToString()]

    exchange(peer, 2, lying)
    assert calls[0] < 20
    assert peer.chains.count(4) == 200


def test_an_answer_without_end_is_broken_off() -> None:
    swarm = full()
    piece = pb.Batch(run=RUN, epoch=2, segments=[pb.Segment(body=bytes(1 << 20))]).SerializeToString()
    counts = dict.fromkeys(METHODS, 0)

    def endless(method: str, request: bytes) -> Iterable[bytes]:
        if method == "Heads" and counts["Heads"] == 0:
            counts["Heads"] += 1
            heads = summary(swarm.peers[2])
            heads.digest = b""
            yield heads.SerializeToString()
            return
        while True:
            counts[method] += 1
            yield piece

    with pytest.raises(RefusedError, match="an answer of more than"):
        exchange(swarm.peers[1], 2, endless)
    assert counts["Segments"] < 40


def test_what_belongs_to_another_run_or_history_is_refused() -> None:
    swarm, other = Swarm(4), Swarm(4)
    other.terms = type(other.terms)(digest("another"), other.terms.organiser)
    other.roster = roster([1, 2, 3, 4], run=other.terms.run)
    other.start(2, type(swarm.stores[1])())
    with pytest.raises(RefusedError, match="other run"):
        exchange(swarm.peers[1], 2, other.network.call(1, 2))
    founded = Swarm(4)
    founded.start(2, type(swarm.stores[1])(), roster=roster([1, 2, 3], serial=2))
    with pytest.raises(RefusedError, match="after another cut"):
        exchange(swarm.peers[1], 2, founded.network.call(1, 2))
    assert not swarm.peers[1]._heard


def test_who_claims_a_head_of_this_peer_that_it_does_not_give_is_not_met() -> None:
    swarm = Swarm(4)
    heads = summary(swarm.peers[1])
    heads.digest = b""
    heads.heads.add(peer=1, count=5, hash=bytes(32))

    def claiming(method: str, request: bytes) -> list[bytes]:
        return [heads.SerializeToString()] if method == "Heads" else [b""]

    exchange(swarm.peers[1], 2, claiming)
    assert not swarm.peers[1]._heard


# Nothing but errors of this project comes out of any bytes.


def _samples() -> dict[str, list[bytes]]:
    swarm = full()
    seen: dict[str, list[bytes]] = {method: [b""] for method in METHODS}
    replies: dict[str, list[bytes]] = {method: [b""] for method in METHODS}
    swarm.peers[3] = Swarm(4).peers[3]

    for caller, callee in ((1, 2), (3, 1), (2, 1)):
        ask = swarm.network.call(caller, callee)

        def recording(method: str, request: bytes, ask: Call = ask) -> list[bytes]:
            seen[method].append(request)
            got = list(ask(method, request))
            replies[method] += got
            return got

        try:
            exchange(swarm.peers[caller], callee, recording)
        except FedpeftError:
            continue
    assert all(len(requests) > 1 for requests in seen.values())
    return {**seen, **{f"{method}'s answer": got for method, got in replies.items()}}


SAMPLES = _samples()


def mangled(random: Random, data: bytes) -> bytes:
    """Bytes like these, with some turned, cut off, repeated or put between."""
    bent = bytearray(data)
    for _ in range(random.choice([0, 1, 1, 2, 5])):
        at = random.randrange(len(bent) + 1)
        what = random.randrange(4)
        if what == 0 and at < len(bent):
            bent[at] ^= 1 << random.randrange(8)
        elif what == 1:
            del bent[at : at + random.randrange(1, 40)]
        elif what == 2:
            bent[at:at] = random.randbytes(random.randrange(1, 10))
        else:
            bent += bent[at : at + 60]
    return bytes(bent)


def hold(peer: Peer) -> tuple[object, ...]:
    return peer.epoch, peer.root, peer.state, peer.barred


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_request_is_answered_or_refused(seed: int) -> None:
    random, swarm = Random(seed), full()
    peer = swarm.peers[2]
    before = hold(peer)
    for _ in range(20):
        method = random.choice(METHODS)
        request = random.choice(
            [mangled(random, random.choice(SAMPLES[method])), random.randbytes(random.randrange(60))]
        )
        try:
            list(answer(peer, method, request))
        except FedpeftError:
            continue
    assert hold(peer) == before
    assert not {1, 2, 3} & peer.chains.forks.keys()
    swarm.meet()
    assert swarm.same()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_answer_is_taken_or_refused(seed: int) -> None:
    random, swarm = Random(seed), full()
    peer = swarm.peers[2]

    def hostile(ask: Call) -> Callable[[str, bytes], list[bytes]]:
        def replying(method: str, request: bytes) -> list[bytes]:
            if random.random() < 0.5:
                return [mangled(random, reply) for reply in ask(method, request)]
            return [mangled(random, random.choice(SAMPLES[f"{method}'s answer"])) for _ in range(random.randrange(3))]

        return replying

    for _ in range(4):
        try:
            exchange(peer, 1, hostile(swarm.network.call(2, 1)))
        except FedpeftError:
            continue
    assert not {1, 2, 3} & peer.chains.forks.keys()
    swarm.meet()
    assert swarm.same()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_any_snapshot_and_batch_is_taken_or_refused(seed: int) -> None:
    random, swarm = Random(seed), full()
    newcomer, peer = Swarm(4).peers[3], swarm.peers[2]
    data = swarm.peers[1].snapshot() or b""
    for _ in range(10):
        try:
            newcomer.adopt(mangled(random, data))
        except FedpeftError:
            continue
    assert newcomer.epoch == 1 or newcomer.root == peer.root
    for request in SAMPLES["Push"]:
        try:
            batch = pb.Batch.FromString(mangled(random, request))
        except Exception:
            continue
        peer.take(batch)
    assert not {1, 2, 3} & peer.chains.forks.keys()


def test_threads_may_do_all_of_it_at_once() -> None:
    """Exchanges, segments, votes and the ends of epochs, on a thread for each peer."""
    swarm = Swarm(4, most_segments=2)
    broken: list[BaseException] = []

    def once(number: int, random: Random, now: float) -> None:
        peer, other = swarm.peers[number], random.choice([n for n in swarm.peers if n != number])
        peer.publish(b"x", peer.epoch, peer.chains.count(number) + 1)
        with suppress(FedpeftError):
            exchange(peer, other, lambda method, request: answer(swarm.peers[other], method, request))
        peer.advance(now)

    def live(number: int) -> None:
        random = Random(number)
        try:
            for now in range(5000):
                once(number, random, float(now))
                if min(peer.epoch for peer in swarm.peers.values()) > 4:
                    return
        except BaseException as error:
            broken.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in swarm.peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken
    swarm.meet()
    assert swarm.same()
    assert swarm.peers[1].epoch > 4
