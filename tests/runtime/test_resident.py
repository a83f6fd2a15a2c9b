"""A site behind a Unix domain socket: who may call, what a bad caller cannot do, how a restart looks."""

import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpeft.errors import ConfigError, RefusedError, RunError
from fedpeft.runtime.resident import ask, serve


@pytest.fixture
def path() -> Iterator[Path]:
    """Short, whatever the test is called."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "site" / "s"


@contextmanager
def serving(path: Path, handler: Callable[[bytes], bytes], **more: object) -> Iterator[threading.Event]:
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            serve(path, handler, stop, **more)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: path.exists() or raised)
        yield stop
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


def wait_until(done: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def call(path: Path, data: bytes = b"") -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(20)
    wait_until(lambda: caller.connect_ex(str(path)) == 0)  # its path is there an instant before it listens
    caller.sendall(data)
    return caller


def framed(data: bytes) -> bytes:
    return struct.pack("!Q", len(data)) + data


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3_000_001)])
def test_a_task_goes_in_and_its_reply_comes_out(path: Path, data: bytes) -> None:
    with serving(path, lambda request: request[::-1]):
        assert ask(path, data, 20) == data[::-1]


def test_only_the_owner_can_reach_it_and_nothing_is_left(path: Path) -> None:
    with serving(path, bytes):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.exists()


def test_one_at_a_time_while_the_others_wait(path: Path) -> None:
    at_work, most, replies = [], [], []

    def handler(request: bytes) -> bytes:
        at_work.append(request)
        time.sleep(0.02)
        most.append(len(at_work))
        at_work.remove(request)
        return request

    with serving(path, handler):
        threads = [
            threading.Thread(target=lambda i=i: replies.append(ask(path, b"%d" % i, 20) == b"%d" % i)) for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 6
    assert replies == [True] * 6


@pytest.mark.parametrize("sent", [b"", b"\0\0", framed(b"half of it")[:-3], struct.pack("!Q", 1 << 62)])
def test_a_caller_that_dies_or_makes_no_sense_is_nobody_elses_trouble(path: Path, sent: bytes) -> None:
    asked = []
    with serving(path, lambda request: asked.append(request) or b"re"):
        call(path, sent).close()
        assert ask(path, b"1", 20) == b"re"
    assert asked == [b"1"]


def test_a_silent_caller_is_given_up_and_holds_up_nobody(path: Path) -> None:
    with serving(path, lambda request: b"re", silent_s=0.3), call(path, b"\0") as silent:
        assert ask(path, b"1", 20) == b"re"
        assert silent.recv(1) == b""


def test_a_caller_that_does_not_wait_for_its_reply_hurts_nobody(path: Path) -> None:
    go, begun = threading.Event(), threading.Event()

    def handler(request: bytes) -> bytes:
        begun.set()
        go.wait(20)
        return bytes(5_000_000)

    with serving(path, handler):
        caller = call(path, framed(b"1"))
        assert begun.wait(20)
        caller.close()
        go.set()
        assert len(ask(path, b"2", 20)) == 5_000_000


def test_nobody_works_for_a_caller_that_left_while_it_waited(path: Path) -> None:
    go, asked = threading.Event(), []

    def handler(request: bytes) -> bytes:
        asked.append(request)
        go.wait(20)
        return b"re"

    with serving(path, handler):
        first = call(path, framed(b"1"))
        wait_until(lambda: asked)
        call(path, framed(b"2")).close()
        last = call(path, framed(b"3"))
        go.set()
        for caller in (first, last):
            with caller, caller.makefile("rb") as reply:
                assert reply.read() == framed(b"re")
    assert asked == [b"1", b"3"]


def test_what_is_too_large_is_refused(path: Path) -> None:
    asked = []
    with serving(path, lambda request: asked.append(request) or bytes(50), largest=10):
        with call(path, struct.pack("!Q", 11)) as caller:
            assert caller.recv(1) == b""
        with pytest.raises(RefusedError, match="expected at most 20 bytes, got 50"):
            ask(path, b"1", 20, largest=20)
    assert asked == [b"1"]
    with pytest.raises(ValueError, match="request: expected at most 20 bytes, got 21"):
        ask(path, bytes(21), 1, largest=20)


def test_a_site_that_is_away_is_waited_for(path: Path) -> None:
    replies = []
    asking = threading.Thread(target=lambda: replies.append(ask(path, b"1", 20)))
    asking.start()
    with serving(path, lambda request: b"re " + request):
        asking.join(20)
    assert replies == [b"re 1"]


def test_a_site_that_dies_at_work_is_asked_again_when_it_is_back(path: Path) -> None:
    replies = []
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(path))
        dying.listen()
        asking = threading.Thread(target=lambda: replies.append(ask(path, b"1", 20)))
        asking.start()
        at_work, _ = dying.accept()
        at_work.close()
    with serving(path, lambda request: b"re " + request):
        asking.join(20)
    assert replies == [b"re 1"]


def test_nobody_there_is_said_with_the_way_out(path: Path) -> None:
    with pytest.raises(
        RunError, match=r"no site answered within 0\.1 s \(.*\); start it with `fedpeft site .*--socket"
    ):
        ask(path, b"1", 0.1)


def test_a_task_at_work_is_finished_when_the_site_stops(path: Path) -> None:
    go, begun, replies = threading.Event(), threading.Event(), []

    def handler(request: bytes) -> bytes:
        begun.set()
        go.wait(20)
        return b"done"

    with serving(path, handler) as stop:
        asking = threading.Thread(target=lambda: replies.append(ask(path, b"1", 20)))
        asking.start()
        assert begun.wait(20)
        stop.set()
        go.set()
        asking.join(20)
    assert replies == [b"done"]


def test_what_a_handler_raises_ends_the_serving(path: Path) -> None:
    def handler(request: bytes) -> bytes:
        raise OSError("a defect")

    with pytest.raises(OSError, match="a defect"), serving(path, handler), call(path, framed(b"1")) as caller:
        assert caller.recv(1) == b""


def test_the_socket_of_a_killed_site_is_taken_over_and_that_of_a_living_one_is_not(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
        with pytest.raises(ConfigError, match="another process serves there"):
            serve(path, bytes, threading.Event())
    assert path.exists()
    with serving(path, bytes):
        wait_until(lambda: path.exists() and path.stat().st_mode & 0o777 == 0o600)
        assert ask(path, b"1", 20) == b"1"


def test_a_path_that_cannot_be_used_is_said(path: Path) -> None:
    stop = threading.Event()
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    with pytest.raises(ConfigError, match="expected a socket or nothing"):
        serve(path, bytes, stop)
    assert path.read_text() == "precious"
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="only its owner, this user, can enter: chmod 700"):
        serve(path, bytes, stop)
    with pytest.raises(ConfigError, match="at most 100 bytes"):
        serve(path.parent / ("x" * 100), bytes, stop)
    with pytest.raises(ConfigError, match="cannot be listened on: File exists"):
        serve(path / "s", bytes, stop)
