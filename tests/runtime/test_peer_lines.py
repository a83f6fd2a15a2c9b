import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import RefusedError, UnreachableError
from fedpeft.keys import peer as keys
from fedpeft.peers.exchange import exchange
from fedpeft.peers.roster import Member
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.dialling import Lines
from fedpeft.runtime.peer.limits import SERVICE, Limits
from fedpeft.runtime.peer.node import Node
from tests.runtime.peer_world import RUN, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        made.admit("a", "b", "c")
        yield made


@contextmanager
def raw(world: World, who: str, to: Node, called: str, name: str | None = None) -> Iterator[grpc.Channel]:
    """A line of somebody who shows a name's certificate and trusts only that of who is called."""
    callee = (world.folder / called / "keys" / "tls.crt").read_bytes()
    pair = keys.pair(world.folder / who / "keys") if who else (None, None)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", name or called)]
    with grpc.secure_channel(to.address, grpc.ssl_channel_credentials(callee, *pair), options) as channel:
        yield channel


def code(channel: grpc.Channel, method: str, request: bytes = b"", timeout: float | None = 5.0) -> grpc.StatusCode:
    """How a call ends that is a stream, as any may be read."""
    try:
        list(channel.unary_stream(f"/{SERVICE}/{method}", bytes, bytes)(request, timeout=timeout))
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


HELLO = pb.Greeting(run=RUN, peer=2).SerializeToString()


def test_a_member_gets_through_and_nobody_else(world: World, tmp_path: Path) -> None:
    a = world.start("a")
    keys.join(tmp_path / "stranger" / "keys", RUN, "stranger", ())
    keys.join(tmp_path / "posing" / "keys", RUN, "b", ())
    with raw(world, "b", a, "a") as channel:
        assert code(channel, "Hello", HELLO) is grpc.StatusCode.OK
    for who in ("", "stranger", "posing"):
        with raw(world, who, a, "a") as channel:
            assert code(channel, "Hello", HELLO) is grpc.StatusCode.UNAVAILABLE


def test_a_member_cannot_answer_for_another(world: World) -> None:
    a = world.start("a")
    for name in ("a", "b"):
        with raw(world, "c", a, "b", name) as channel:
            assert code(channel, "Hello", HELLO) is grpc.StatusCode.UNAVAILABLE
    c = world.node("c", b=a.address)
    lines = Lines(c._trust, c.contacts, c._greeting, Limits(5.0))
    with pytest.raises(UnreachableError, match="'b' is not reached"):
        lines.call(2)("Heads", b"")
    assert c.contacts.seen(2).failures == 1
    lines.close()
    c.peer._store.close()  # type: ignore[attr-defined]


def test_a_dismissed_member_is_shut_out_when_the_epoch_ends(world: World) -> None:
    a, b = world.start("a"), world.start("b")
    with raw(world, "c", a, "a") as channel:
        assert code(channel, "Hello", HELLO) is grpc.StatusCode.OK
        last = world.rosters[-1]
        without = last.next(last.members[:2]).signed(world.organiser)
        a.peer.take(world.batch(without))
        assert code(channel, "Hello", HELLO) is grpc.StatusCode.OK
        c = world.start("c")
        world.until(lambda: world.closed(1, "a", "b"))
        world.until(lambda: a.peer.roster == b.peer.roster == without)
        world.until(lambda: code(channel, "Hello", HELLO) is grpc.StatusCode.PERMISSION_DENIED)
    with raw(world, "c", a, "a") as channel:
        assert code(channel, "Hello", HELLO) is grpc.StatusCode.UNAVAILABLE
    world.until(lambda: world.closed(3, "a", "b"))
    assert c.peer.epoch <= 2


def test_what_is_not_readable_ends_the_call_and_nothing_else(world: World) -> None:
    a = world.start("a")
    before = a.peer.chains.digest()
    with raw(world, "b", a, "a") as channel:
        for method in ("Heads", "Segments", "Push", "Proof", "Snapshot"):
            assert code(channel, method, b"\xff" * 9) is grpc.StatusCode.FAILED_PRECONDITION
        other = pb.Heads(run=bytes(32)).SerializeToString()
        assert code(channel, "Heads", other) is grpc.StatusCode.FAILED_PRECONDITION
        assert code(channel, "Hello", pb.Greeting(run=bytes(32)).SerializeToString()) is (
            grpc.StatusCode.FAILED_PRECONDITION
        )
        assert code(channel, "Nothing") is grpc.StatusCode.UNIMPLEMENTED
        assert code(channel, "Heads", b"", timeout=None) is grpc.StatusCode.FAILED_PRECONDITION
        assert code(channel, "Push", bytes(17 << 20)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        wrong = pb.Segment(epoch=1, peer=2, number=1, body=b"x", signature=bytes(64))
        batch = pb.Batch(run=RUN, epoch=1, segments=[wrong])
        assert code(channel, "Push", batch.SerializeToString()) is grpc.StatusCode.OK
    assert a.peer.chains.digest() == before


def test_one_member_cannot_take_all_the_room(world: World) -> None:
    a = world.start("a")
    with a.peer.lock, raw(world, "b", a, "a") as channel:
        assert code(channel, "Hello", HELLO, 30) is grpc.StatusCode.OK
        ask = channel.unary_unary(f"/{SERVICE}/Heads", bytes, bytes)
        held = [ask.future(pb.Heads(run=RUN).SerializeToString(), timeout=30) for _ in range(5)]
        first = next(call for call in _ended(held))
        assert first.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "at most 3 calls" in first.details()
        with raw(world, "c", a, "a") as other:
            assert other.unary_unary(f"/{SERVICE}/Hello", bytes, bytes)(HELLO, timeout=30)


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_calls_that_never_say_anything_keep_nobody_out(world: World, deadline: float | None) -> None:
    a, over = world.start("a"), threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait()
        yield b""

    try:
        with ExitStack() as lines:
            channels = [lines.enter_context(raw(world, "b", a, "a")) for _ in range(4)]
            methods = ("Push", "Hello", "Heads", "Segments", "Snapshot")
            calls = [
                channel.stream_stream(f"/{SERVICE}/{method}", bytes, bytes)(silent(), timeout=deadline)
                for channel in channels
                for method in methods
            ]
            refused = len(calls) if deadline is None else len(calls) - 3
            world.until(lambda: sum(call.done() for call in calls) >= refused)
            codes = [call.code() for call in calls if call.done()]
            assert codes == [grpc.StatusCode.FAILED_PRECONDITION] * refused
            with raw(world, "c", a, "a") as other:
                assert [code(other, "Hello", HELLO) for _ in range(20)] == [grpc.StatusCode.OK] * 20
            for call in calls:
                call.cancel()
            world.until(lambda: not a._service._busy.total())
    finally:
        over.set()


def test_where_half_the_room_is_taken_each_member_has_one_call(world: World) -> None:
    a = world.start("a")
    a._service._room = 4
    with a.peer.lock, raw(world, "b", a, "a") as channel, raw(world, "c", a, "a") as other:
        assert code(channel, "Hello", HELLO, 30) is code(other, "Hello", HELLO, 30) is grpc.StatusCode.OK
        request = pb.Heads(run=RUN).SerializeToString()
        held = [line.unary_unary(f"/{SERVICE}/Heads", bytes, bytes) for line in (channel, other)]
        first = [held[0].future(request, timeout=30) for _ in range(2)]
        world.until(lambda: a._service._busy[2] == 2)
        assert code(channel, "Heads", request, 30) is grpc.StatusCode.FAILED_PRECONDITION
        second = held[1].future(request, timeout=30)
        world.until(lambda: a._service._busy[3] == 1)
        assert code(other, "Heads", request, 30) is grpc.StatusCode.FAILED_PRECONDITION
        assert not any(call.done() for call in (*first, second))


@pytest.mark.parametrize("said", [[], [HELLO, HELLO]])
def test_a_call_has_one_message(world: World, said: list[bytes]) -> None:
    a = world.start("a")
    with raw(world, "b", a, "a") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(f"/{SERVICE}/Hello", bytes, bytes)(iter(said), timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


class Short(Limits):
    exchange_s = 0.5  # type: ignore[assignment]


def test_an_exchange_ends_though_each_answer_comes_in_time(world: World) -> None:
    a = world.start("a")
    b = world.node("b", a=a.address)
    request = pb.Heads(run=RUN).SerializeToString()
    lines = Lines(b._trust, b.contacts, b._greeting, Short(deadline_s=30.0))
    call = lines.call(1)
    with pytest.raises(UnreachableError, match="DEADLINE_EXCEEDED|takes too long"):
        for _ in range(1_000_000):
            call("Heads", request)
    lines.close()
    assert b.contacts.seen(1).failures == 1
    lines = Lines(b._trust, b.contacts, b._greeting, Limits(deadline_s=30.0))
    assert lines.call(1)("Heads", request)
    assert b.contacts.seen(1).failures == 1, "an answer is no exchange that came to its end"
    lines.close()
    b.peer._store.close()  # type: ignore[attr-defined]


def test_two_threads_that_dial_one_member_share_a_line(world: World) -> None:
    a = world.start("a")
    b = world.node("b", a=a.address)
    lines = Lines(b._trust, b.contacts, b._greeting, Limits(5.0))
    request = pb.Heads(run=RUN).SerializeToString()
    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            both = [threads.submit(lines.call(1), "Heads", request) for _ in range(2)]
            assert [len(list(future.result())) for future in both] == [1, 1]
            assert len(lines._open) == 1
            lines._drop(1)
    assert not lines._dialled
    lines.close()
    b.peer._store.close()  # type: ignore[attr-defined]


def _ended(calls: list[grpc.Future]) -> Iterator[grpc.Future]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        yield from (call for call in calls if call.done())
        time.sleep(0.01)


def test_hints_are_few_are_addresses_and_are_of_members(world: World) -> None:
    a = world.start("a")
    many = {number: f"127.0.0.1:{number + 1}" for number in range(1, 40)}
    with raw(world, "b", a, "a") as channel:
        for i in range(1, 9):
            told = pb.Greeting(run=RUN, peer=2, address=f"host:{i}", known={3: f"host-{i}:1"} if i < 8 else many)
            assert code(channel, "Hello", told.SerializeToString()) is grpc.StatusCode.OK
        odd = pb.Greeting(run=RUN, peer=2, address="no address", known={3: "x" * 9999})
        assert code(channel, "Hello", odd.SerializeToString()) is grpc.StatusCode.OK
    assert list(a.contacts.seen(2).hints) == ["host:6", "host:7", "host:8"]
    assert list(a.contacts.seen(3).hints) == ["host-6:1", "host-7:1", "127.0.0.1:4"]
    assert set(a.contacts._known) <= {2, 3}


def test_bytes_are_counted_at_both_ends_alike(world: World) -> None:
    a = world.start("a", dials=False, b="127.0.0.1:1", c="127.0.0.1:1")
    b = world.node("b", a=a.address)
    lines = Lines(b._trust, b.contacts, b._greeting, Limits(5.0))
    exchange(b.peer, 1, lines.call(1))
    lines.close()
    there, here = a.contacts.seen(2), b.contacts.seen(1)
    assert (there.sent_bytes, there.received_bytes) == (here.received_bytes, here.sent_bytes)
    assert here.sent_bytes > 64
    b.peer._store.close()  # type: ignore[attr-defined]


def test_whoever_is_not_reached_is_tried_less_and_less_often() -> None:
    contacts, member = Contacts({"b": ["host:1"]}, every_s=1.0), Member(2, "b", bytes(32))
    waits = []
    for _ in range(12):
        contacts.missed(2, 100.0, "gone")
        waits.append(contacts.seen(2).next_try - 100.0)
        assert contacts.choose({2: member}, 100.0) is None
        assert contacts.choose({2: member}, 161.0) == 2
    assert waits[0] <= 2.0 and all(30.0 <= wait <= 60.0 for wait in waits[6:])
    contacts.reached(2, 100.0)
    assert contacts.choose({2: member}, 100.0) is None, "an answer alone is no exchange"
    contacts.agreed(2)
    assert contacts.choose({2: member}, 100.0) == 2
    assert contacts.choose({2: replace(member, name="elsewhere")}, 100.0) is None


def test_who_was_never_tried_goes_first_and_who_never_agrees_does_not() -> None:
    contacts = Contacts({name: ["host:1"] for name in "bcd"}, every_s=1.0)
    others = {number: Member(number, name, bytes(32)) for number, name in enumerate("bcd", 2)}
    contacts.agreed(2)
    contacts.missed(3, 0.0, "of no use")
    assert {contacts.choose(others, 100.0) for _ in range(20)} == {4}
    contacts.agreed(4)
    assert {contacts.choose(others, 100.0) for _ in range(200)} == {2, 3, 4}


def test_a_peer_of_another_run_is_refused(world: World, tmp_path: Path) -> None:
    a = world.start("a")
    b = world.node("b", a=a.address)
    lines = Lines(b._trust, b.contacts, b._greeting, Limits(5.0))
    call = lines.call(1)
    b.peer.terms = replace(b.peer.terms, run=bytes(32))
    with pytest.raises((UnreachableError, RefusedError), match="other run|not reached"):
        exchange(b.peer, 1, call)
    lines.close()
    b.peer._store.close()  # type: ignore[attr-defined]
