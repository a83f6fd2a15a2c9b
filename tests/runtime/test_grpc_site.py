"""The site's end against servers that vanish, stall, lie and come back: no work is lost, and none is done twice."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from fedpeft import keys
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import IdentityError
from fedpeft.runtime.grpc import credentials, endpoint, site
from fedpeft.runtime.grpc.server import GrpcTransport
from fedpeft.runtime.grpc.site import Ending
from fedpeft.runtime.grpc.spool import PIECE
from tests.runtime.site_world import BadLine, Running, Seen, digest, listening, update, wait_until

BIG = update(os.urandom(3 * PIECE))
DONE = update(b"done: ")
Behaviour = Callable[[Iterator[pb.Frame]], Iterator[pb.Frame]]
WELCOME = pb.Frame(welcome=pb.Welcome(protocol=endpoint.PROTOCOL, version="0"))


def ask(transport: GrpcTransport, task: bytes, node: str = "ann") -> bytes:
    (arrival,) = transport.exchange({node: task}, 20)
    return bytes(arrival.data)


class Worker:
    """A handler that can be held, and counts."""

    def __init__(self, reply: bytes = DONE) -> None:
        self.tasks: list[bytes] = []
        self.go = threading.Event()
        self.go.set()
        self._reply = reply

    def __call__(self, task: bytes) -> bytes:
        self.tasks.append(task)
        assert self.go.wait(20)
        return self._reply + task


@contextmanager
def hostile(keyring: Path, behaviour: Behaviour) -> Iterator[str]:
    """A server with the right certificate, and its own ideas."""
    ended = threading.Event()

    def serve(frames: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[pb.Frame]:
        context.add_callback(ended.set)
        yield from behaviour(frames)

    handler = grpc.stream_stream_rpc_method_handler(serve, pb.Frame.FromString, lambda frame: frame.SerializeToString())
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(endpoint.SERVICE, {endpoint.METHOD: handler}),)
    )
    port = server.add_secure_port("127.0.0.1:0", credentials.server_credentials(keyring / "server"))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(("stay", "ending"), [(False, Ending.FINISHED), (True, Ending.STOPPED)])
def test_when_the_run_is_over_a_site_ends_or_waits_for_the_next(
    keyring: Path, tmp_path: Path, stay: bool, ending: Ending
) -> None:
    with listening(keyring, tmp_path / "spool") as transport:
        running = Running(transport.address, keyring / "ann", Worker(), tmp_path / "ann", stay=stay)
        wait_until(transport.nodes)
        assert ask(transport, b"1") == DONE + b"1"
        transport.farewell([], "the run is over", 0)
        transport.close()
    if stay:
        with listening(keyring, tmp_path / "spool", address=transport.address) as again:
            wait_until(again.nodes)
            assert ask(again, b"2") == DONE + b"2"
        running.site.stop()
    assert running.ended()
    assert running.ending is ending


def test_a_lost_connection_loses_no_work(keyring: Path, tmp_path: Path) -> None:
    """Cut while the site works, whether it is back before it has finished or after: it works once."""
    worker = Worker(BIG)
    with (
        listening(keyring, tmp_path / "spool") as transport,
        BadLine(transport.address) as line,
        Running(line.address, keyring / "ann", worker, tmp_path / "ann"),
    ):
        wait_until(transport.nodes)
        for number in range(3):
            worker.go.clear()
            exchanged: list[bytes] = []
            asking = threading.Thread(target=lambda: exchanged.append(ask(transport, b"%d" % number)))  # noqa: B023
            asking.start()
            wait_until(lambda: len(worker.tasks) == number + 1)  # noqa: B023
            line.cut()
            if number != 1:
                wait_until(lambda: line.connections == 2 + number)  # noqa: B023
            worker.go.set()
            asking.join(20)
            assert exchanged == [BIG + b"%d" % number]
    assert worker.tasks == [b"0", b"1", b"2"]


def test_a_server_that_starts_again_gets_the_reply_that_was_made_for_the_first(keyring: Path, tmp_path: Path) -> None:
    worker = Worker(BIG)
    worker.go.clear()
    with listening(keyring, tmp_path / "spool") as first:
        running = Running(first.address, keyring / "ann", worker, tmp_path / "ann")
        wait_until(first.nodes)
        list(first.exchange({"ann": b"task"}, 0.0))
        wait_until(lambda: worker.tasks)
    worker.go.set()
    with running, listening(keyring, tmp_path / "spool", address=first.address) as second:
        assert ask(second, b"task") == BIG + b"task"
    assert worker.tasks == [b"task"]


def test_a_newer_task_waits_for_the_one_at_hand_and_takes_the_place_of_one_that_waits(
    keyring: Path, tmp_path: Path
) -> None:
    worker, seen = Worker(), Seen()
    worker.go.clear()
    with (
        listening(keyring, tmp_path / "spool", watch=seen) as transport,
        Running(transport.address, keyring / "ann", worker, tmp_path / "ann") as running,
    ):
        wait_until(transport.nodes)
        list(transport.exchange({"ann": b"at hand"}, 0.0))
        wait_until(lambda: worker.tasks)
        for task in (BIG, b"newest"):
            list(transport.exchange({"ann": task}, 0.0))
            wait_until(lambda: running.site._task is not None and running.site._task.data == task)  # noqa: B023
        assert not list((tmp_path / "ann").iterdir())
        worker.go.set()
        assert ask(transport, b"newest") == DONE + b"newest"
    assert worker.tasks == [b"at hand", b"newest"]
    assert not seen.of("refused"), "the reply to the first is of no use"


def test_stop_while_nobody_answers(keyring: Path, tmp_path: Path) -> None:
    with BadLine("127.0.0.1:1") as nowhere:
        for wait in (False, True):
            running = Running(nowhere.address, keyring / "ann", Worker(), tmp_path / "ann")
            if wait:
                wait_until(lambda: running.said)  # noqa: B023
            running.site.stop()
            assert running.ended()
            assert running.ending is Ending.STOPPED


def test_stop_again_and_again_at_any_moment_of_a_connection(keyring: Path, tmp_path: Path) -> None:
    with listening(keyring, tmp_path / "spool") as transport:
        for attempt in range(15):
            running = Running(transport.address, keyring / "ann", Worker(), tmp_path / "ann")
            threading.Event().wait(0.002 * attempt)
            running.site.stop()
            assert running.ended()
            assert (running.ending, running.error) == (Ending.STOPPED, None)
        wait_until(lambda: not transport.nodes())


def test_stop_lets_the_task_at_hand_be_finished(keyring: Path, tmp_path: Path) -> None:
    worker = Worker()
    worker.go.clear()
    finished: list[bytes] = []
    with listening(keyring, tmp_path / "spool") as transport:
        running = Running(
            transport.address, keyring / "ann", lambda task: finished.append(worker(task)) or b"", tmp_path / "ann"
        )
        wait_until(transport.nodes)
        list(transport.exchange({"ann": b"task"}, 0.0))
        wait_until(lambda: worker.tasks)
        running.site.stop()
        wait_until(lambda: not transport.nodes())
        assert running.ending is None
        worker.go.set()
        assert running.ended()
    assert finished == [DONE + b"task"]


def test_stop_does_not_wait_for_a_server_that_is_deaf(
    keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "_GOOD_BYE_S", 0.1)
    closing = threading.Event()

    def deaf(frames: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        yield WELCOME
        closing.wait(20)

    with hostile(keyring, deaf) as address:
        running = Running(address, keyring / "ann", Worker(), tmp_path / "ann")
        wait_until(lambda: running.site._link is not None)
        running.site.stop()
        assert running.ended()
        closing.set()


def test_a_handler_that_raises_ends_the_site_loudly(keyring: Path, tmp_path: Path) -> None:
    def broken(task: bytes) -> bytes:
        raise MemoryError("no room")

    with listening(keyring, tmp_path / "spool") as transport:
        running = Running(transport.address, keyring / "ann", broken, tmp_path / "ann")
        wait_until(transport.nodes)
        assert not list(transport.exchange({"ann": b"task"}, 0.5))
        assert running.ended()
        assert isinstance(running.error, MemoryError)
        wait_until(lambda: not transport.nodes())


def test_keys_that_are_none_are_said_at_once(tmp_path: Path) -> None:
    keys.request(tmp_path / "ann", "ann")
    running = Running("127.0.0.1:1", tmp_path / "ann", Worker(), tmp_path / "spool")
    assert running.ended()
    assert isinstance(running.error, IdentityError)


def test_a_full_disk_at_the_site_ends_the_connection_and_not_the_site(
    keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, full = os.pwrite, [3]

    def write(file: int, data: memoryview, offset: int) -> int:
        if full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(file, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with (
        listening(keyring, tmp_path / "spool") as transport,
        Running(transport.address, keyring / "ann", len_of, tmp_path / "ann") as running,
    ):
        wait_until(transport.nodes)
        assert ask(transport, BIG) == str(len(BIG)).encode()
        assert sum("No space left" in line for line in running.said) == 3


def len_of(task: bytes) -> bytes:
    return str(len(task)).encode()


def say(*frames: pb.Frame) -> Behaviour:
    """Greets, says something, and waits for the site to go."""

    def behaviour(heard: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        next(heard)
        yield WELCOME
        yield from frames
        try:
            for _ in heard:
                pass
        except grpc.RpcError:
            pass

    return behaviour


@pytest.mark.parametrize(
    "frames",
    [
        [pb.Frame()],
        [pb.Frame(hello=pb.Hello())],
        [pb.Frame(chunk=pb.Chunk(digest=b"x", offset=0, data=b"y")), pb.Frame()],
        [
            pb.Frame(offer=pb.Offer(digest=digest(BIG), size=len(BIG))),
            pb.Frame(chunk=pb.Chunk(digest=digest(BIG), offset=0, data=b"drip")),
        ],
        [pb.Frame(chunk=pb.Chunk(data=bytes(5 << 20)))],
    ],
    ids=["an empty frame", "a hello", "a chunk of nothing", "a drip", "a huge frame"],
)
def test_a_server_that_keeps_to_no_rule_is_left_and_dialled_again(
    keyring: Path, tmp_path: Path, frames: list[pb.Frame]
) -> None:
    worker = Worker()
    with (
        hostile(keyring, say(*frames)) as address,
        Running(address, keyring / "ann", worker, tmp_path / "ann") as running,
    ):
        wait_until(lambda: sum(line.startswith("connected to") for line in running.said) >= 2)
    assert not worker.tasks


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        (pb.Offer(digest=digest(BIG), size=1 << 40), "too large"),
        (pb.Offer(digest=digest(b"other"), size=4, data=b"task"), "not what its sender announced"),
        (pb.Offer(digest=b"", size=4, data=b"task"), "expected a SHA-256"),
    ],
)
def test_a_task_that_is_none_is_not_taken(keyring: Path, tmp_path: Path, offer: pb.Offer, why: str) -> None:
    worker = Worker()
    with (
        hostile(keyring, say(pb.Frame(offer=offer))) as address,
        Running(address, keyring / "ann", worker, tmp_path / "ann") as running,
    ):
        wait_until(lambda: any(why in line for line in running.said))
    assert not worker.tasks
    assert not list((tmp_path / "ann").iterdir())


def test_one_task_offered_many_times_is_worked_on_once(keyring: Path, tmp_path: Path) -> None:
    worker = Worker()
    worker.go.clear()
    offer = pb.Frame(offer=pb.Offer(digest=digest(b"task"), size=4, data=b"task"))
    replies: list[bytes] = []

    def repeating(heard: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        next(heard)
        yield WELCOME
        for _ in range(5):
            yield offer
            while next(heard).WhichOneof("frame") != "kept":
                pass
        worker.go.set()
        for frame in heard:
            if frame.WhichOneof("frame") == "offer":
                replies.append(frame.offer.data)
                yield offer

    with (
        hostile(keyring, repeating) as address,
        Running(address, keyring / "ann", worker, tmp_path / "ann"),
    ):
        wait_until(lambda: len(replies) > 5)
    assert worker.tasks == [b"task"]
    assert set(replies) == {DONE + b"task"}


def test_a_server_of_another_authority_is_not_told_anything(keyring: Path, tmp_path: Path) -> None:
    keys.init(tmp_path / "server", ["127.0.0.1"])
    heard: list[pb.Frame] = []

    def listen(frames: Iterator[pb.Frame]) -> Iterator[pb.Frame]:
        heard.extend(frames)
        yield WELCOME

    with (
        hostile(tmp_path, listen) as address,
        Running(address, keyring / "ann", Worker(), tmp_path / "ann") as running,
    ):
        wait_until(lambda: len(running.said) >= 2)
    assert not heard
    assert all("no connection" in line for line in running.said)
