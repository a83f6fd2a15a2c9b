"""The server's end against sites that vanish, stall, flood, lie and come back."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedpeft import keys
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import IdentityError, Reason, RefusedError, RunError, StoppedError
from fedpeft.federation import Event
from fedpeft.runtime.grpc import session
from fedpeft.runtime.grpc.link import MOST_FRAMES
from fedpeft.runtime.grpc.server import _AT_ONCE, GrpcTransport, Limits
from fedpeft.runtime.grpc.session import PATIENCE
from fedpeft.runtime.grpc.spool import PIECE
from tests.runtime.site_world import (
    Raw,
    Running,
    Seen,
    digest,
    enrol,
    listening,
    make_keys,
    open_files,
    wait_until,
)

BIG = os.urandom(3 * PIECE + 5)
WORKING = pb.Frame(working=pb.Working(state="training"))


class Asking:
    """An exchange on a thread of its own."""

    def __init__(self, transport: GrpcTransport, requests: dict[str, bytes], deadline_s: float = 20.0) -> None:
        self.replies: dict[str, bytes] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(transport, requests, deadline_s), daemon=True)
        self._thread.start()

    def _run(self, transport: GrpcTransport, requests: dict[str, bytes], deadline_s: float) -> None:
        try:
            for arrival in transport.exchange(requests, deadline_s):
                assert arrival.node not in self.replies
                self.replies[arrival.node] = bytes(arrival.data)
        except BaseException as error:
            self.error = error

    def done(self) -> dict[str, bytes]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error
        return self.replies


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def transport(keyring: Path, tmp_path: Path, seen: Seen) -> Iterator[GrpcTransport]:
    with listening(keyring, tmp_path / "spool", watch=seen) as made:
        yield made


def upload(site: Raw, task: pb.Offer, data: bytes = BIG) -> None:
    site.offer(data, task.digest)
    site.upload(data, site.hear("take").offset)


def test_small_and_large_messages_go_both_ways(transport: GrpcTransport, keyring: Path, tmp_path: Path) -> None:
    handlers = {"ann": lambda task: task[:10], "bob": lambda task: task + BIG}
    sites = [Running(transport.address, keyring / name, h, tmp_path / name) for name, h in handlers.items()]
    wait_until(lambda: transport.nodes() == ["ann", "bob"])
    for task in (b"small", BIG, b""):
        replies = Asking(transport, {"ann": task, "bob": task}).done()
        assert replies == {name: handler(task) for name, handler in handlers.items()}
    for site in sites:
        site.__exit__()
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (WORKING, "expected a Hello as the first frame"),
        (pb.Frame(), "expected a Hello as the first frame"),
        (
            pb.Frame(hello=pb.Hello(protocol=99, version="9.9")),
            r"speaks protocol 1 \(fedpeft .*, the site 99 \(fedpeft 9.9\); install",
        ),
    ],
    ids=["something else", "an empty frame", "another protocol"],
)
def test_who_does_not_greet_properly_is_refused(
    transport: GrpcTransport, keyring: Path, seen: Seen, frame: pb.Frame, why: str
) -> None:
    with Raw(transport.address, keyring / "ann", hello=False) as site:
        site.say(frame)
        bye = site.hear("bye")
        assert bye.refused
        (told,) = [seen.wait("rejected", "ann")]
        assert re.search(why, bye.why)
        assert bye.why == told.facts["why"]
        assert site.status() is grpc.StatusCode.OK
    assert not transport.nodes()


def test_a_site_that_may_not_take_part_learns_why(keyring: Path, tmp_path: Path, seen: Seen) -> None:
    def admit(node: str, hello: pb.Hello) -> None:
        if node == "bob":
            raise RefusedError(Reason.OTHER_SPACE, "slot 'a' differs")

    with listening(keyring, tmp_path / "spool", admit=admit, watch=seen) as transport:
        running = Running(transport.address, keyring / "bob", lambda task: b"", tmp_path / "bob")
        assert running.ended()
        assert isinstance(running.error, RunError)
        assert "the server refuses this site: other space: slot 'a' differs" in str(running.error)
        with Raw(transport.address, keyring / "ann"):
            assert transport.nodes() == ["ann"]
    assert seen.whys("rejected") == ["other space: slot 'a' differs"]


def test_who_does_not_greet_in_time_is_dismissed(keyring: Path, tmp_path: Path) -> None:
    with (
        listening(keyring, tmp_path / "spool", limits=Limits(greeting_s=1.0)) as transport,
        Raw(transport.address, keyring / "ann", hello=False) as mute,
    ):
        assert mute.hear("bye").why == "expected a Hello in time"
        assert mute.status() is grpc.StatusCode.OK
        with Raw(transport.address, keyring / "bob"):
            assert transport.nodes() == ["bob"]


@pytest.mark.parametrize("rubbish", [b"\xff" * 100, b"", bytes(1000)], ids=["ones", "nothing", "zeros"])
def test_rubbish_ends_its_own_connection_and_no_other(
    transport: GrpcTransport, keyring: Path, seen: Seen, rubbish: bytes
) -> None:
    with Raw(transport.address, keyring / "ann") as good, Raw(transport.address, keyring / "bob") as bad:
        bad.say(rubbish)
        wait_until(lambda: transport.nodes() == ["ann"])
        seen.wait("disconnected", "bob")
        asked = Asking(transport, {"ann": b"task"})
        task = good.task()
        good.offer(b"reply", task.digest)
        assert asked.done() == {"ann": b"reply"}


def test_a_message_that_is_too_long_for_a_frame_ends_its_connection(transport: GrpcTransport, keyring: Path) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        site.say(pb.Frame(chunk=pb.Chunk(data=bytes(3 << 20))))
        wait_until(lambda: not transport.nodes())
        assert site.status() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_second_hello_is_no_protocol(transport: GrpcTransport, keyring: Path) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        site.say(pb.Frame(hello=pb.Hello(protocol=1)))
        assert "expected a frame of a message under way, got hello" in site.hear("bye").why


def test_a_site_that_talks_and_talks_is_dismissed(transport: GrpcTransport, keyring: Path, seen: Seen) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        site.say(*[WORKING] * (10 * PATIENCE))
        bye = site.hear("bye")
        assert f"expected at most {PATIENCE} frames that nobody asked for" in bye.why
        assert not bye.refused
        assert site.status() is grpc.StatusCode.OK
    seen.wait("disconnected", "ann")
    assert len(seen.of("working", "ann")) == PATIENCE


def test_a_working_site_is_not_thought_to_talk(transport: GrpcTransport, keyring: Path) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        for number in range(PATIENCE):
            asked = Asking(transport, {"ann": b"%d" % number})
            task = site.task()
            site.say(WORKING, pb.Frame(working=pb.Working(state="idle")))
            site.offer(b"reply", task.digest)
            assert asked.done() == {"ann": b"reply"}


def test_who_reads_nothing_is_given_up_and_costs_little(
    keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GOOD_BYE_S", 0.1)
    with (
        listening(keyring, tmp_path / "spool") as transport,
        Raw(transport.address, keyring / "ann", reads=False),
    ):
        wait_until(lambda: transport.nodes())
        (link,) = [s.link for s in transport._sessions.values()]
        for number in range(4 * MOST_FRAMES):
            if not list(transport.exchange({"ann": bytes(60_000) + b"%d" % number}, 0.0)) and link.closed:
                break
        assert link.closed
        assert len(link._frames) <= MOST_FRAMES
        wait_until(lambda: not transport._open)


def test_a_site_that_connects_anew_takes_the_place_of_its_old_self(
    transport: GrpcTransport, keyring: Path, seen: Seen
) -> None:
    asked = Asking(transport, {"ann": b"task"})
    with Raw(transport.address, keyring / "ann") as old:
        first = old.task()
        old.offer(BIG, first.digest)
        old.hear("take")
        old.chunk(BIG, 0)
        old.hear("kept")
        with Raw(transport.address, keyring / "ann") as new:
            assert old.hear("bye").why == "the site connected anew"
            old.chunk(bytes(len(BIG)), PIECE)
            again = new.task()
            assert again.digest == first.digest
            new.offer(BIG, again.digest)
            assert new.hear("take").offset == PIECE
            for offset in (PIECE, 2 * PIECE, 3 * PIECE):
                new.chunk(BIG, offset)
            assert asked.done() == {"ann": BIG}
            wait_until(lambda: len(transport._open) == 1)
            assert transport.nodes() == ["ann"]
            assert not seen.of("disconnected")
    seen.wait("disconnected", "ann")


def test_one_site_cannot_take_all_connections(keyring: Path, tmp_path: Path) -> None:
    with listening(keyring, tmp_path / "spool", limits=Limits(sessions=_AT_ONCE + 2)) as transport:
        greedy = [Raw(transport.address, keyring / "ann", hello=False) for _ in range(3 * _AT_ONCE)]
        wait_until(lambda: sum(raw.error is not None for raw in greedy) == 2 * _AT_ONCE)
        assert {raw.status() for raw in greedy if raw.error} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        with Raw(transport.address, keyring / "bob"):
            assert transport.nodes() == ["bob"]
        for raw in greedy:
            raw.close()


def test_places_of_those_who_vanish_are_given_to_others(keyring: Path, tmp_path: Path) -> None:
    with (
        listening(keyring, tmp_path / "spool", limits=Limits(uploads=1)) as transport,
        Raw(transport.address, keyring / "bob") as waiting,
    ):
        asked = Asking(transport, {"ann": b"task", "bob": b"task"})
        task = waiting.task()
        for _ in range(3):
            with Raw(transport.address, keyring / "ann") as vanishing:
                vanishing.task()
                vanishing.offer(BIG, task.digest)
                vanishing.hear("take")
        upload(waiting, task)
        with Raw(transport.address, keyring / "ann") as back:
            upload(back, back.task())
            assert asked.done() == {"ann": BIG, "bob": BIG}


def test_a_silent_upload_lets_others_go_first_and_is_taken_up_after(keyring: Path, tmp_path: Path, seen: Seen) -> None:
    limits = Limits(uploads=1, silent_s=0.01)
    with (
        listening(keyring, tmp_path / "spool", limits=limits, watch=seen) as transport,
        Raw(transport.address, keyring / "ann") as slow,
    ):
        asked = Asking(transport, {"ann": b"task", "bob": b"task"})
        slow.task()
        slow.offer(BIG, digest(b"task"))
        assert slow.hear("take").offset == 0
        slow.chunk(BIG, 0)
        assert slow.hear("kept").offset == PIECE
        with Running(transport.address, keyring / "bob", lambda task: BIG, tmp_path / "bob"):
            assert slow.hear("take").offset == PIECE
            wait_until(lambda: asked.replies)
            assert asked.replies == {"bob": BIG}
            slow.upload(BIG, PIECE)
            assert asked.done() == {"ann": BIG, "bob": BIG}


def test_two_replies_to_one_task_raise_an_alarm_and_the_first_counts(
    transport: GrpcTransport, keyring: Path, seen: Seen
) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        asked = Asking(transport, {"ann": b"task", "bob": b"task"}, deadline_s=5)
        task = site.task()
        site.offer(b"first", task.digest)
        site.hear("kept")
        site.offer(b"first", task.digest)
        assert site.hear("kept").offset == len(b"first")
        assert not seen.of("alarm")
        site.offer(b"second", task.digest)
        drop = site.hear("drop")
        assert (drop.digest, drop.reason) == (digest(b"second"), "duplicate")
        assert "two different replies" in seen.whys("alarm", "ann")[0]
        with Raw(transport.address, keyring / "bob") as other:
            other.offer(b"reply", other.task().digest)
            assert asked.done() == {"ann": b"first", "bob": b"reply"}


def test_nobody_is_told_anything_under_a_lock(keyring: Path, tmp_path: Path) -> None:
    """A watcher may be slow, and may ask: on another thread, it would wait for ever."""
    stuck: list[Event] = []

    def ask() -> None:
        with suppress(StoppedError):
            transport.nodes()

    def watch(event: Event) -> None:
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(5)
        if asking.is_alive():
            stuck.append(event)

    with listening(keyring, tmp_path / "spool", watch=watch) as transport:
        with Raw(transport.address, keyring / "ann") as site:
            asked = Asking(transport, {"ann": b"task", "bob": b"task"}, deadline_s=2)
            task = site.task()
            upload(site, task)
            site.offer(b"another", task.digest)
            site.hear("drop")
            site.offer(b"late", digest(b"no task"))
            site.hear("drop")
            site.say(WORKING, pb.Frame(drop=pb.Drop(reason="policy")))
            assert asked.done() == {"ann": BIG}
            list(transport.exchange({"ann": b"next"}, 0.0))
        wait_until(lambda: not transport._open)
    assert not stuck


def test_stop_ends_every_wait(keyring: Path, tmp_path: Path) -> None:
    with listening(keyring, tmp_path / "other", least=2) as lonely:
        waits = [lambda: lonely.nodes(), lambda: lonely.pause(60), lambda: list(lonely.exchange({"ann": b""}, 60))]
        errors: list[StoppedError] = []

        def wait(call: Any) -> None:
            with pytest.raises(StoppedError) as raised:
                call()
            errors.append(raised.value)

        threads = [threading.Thread(target=wait, args=(call,)) for call in waits]
        for thread in threads:
            thread.start()
        lonely.stop()
        for thread in threads:
            thread.join(10)
        assert len(errors) == 3


def test_close_ends_sessions_that_are_half_open_or_deaf(
    keyring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    with listening(keyring, tmp_path / "spool", limits=Limits(uploads=1)) as transport:
        mute = Raw(transport.address, keyring / "ann", hello=False)
        busy = Raw(transport.address, keyring / "bob")
        waiting = Raw(transport.address, keyring / "cat")
        deaf = Raw(transport.address, keyring / "cat", hello=False, reads=False)
        Asking(transport, {"bob": b"task", "cat": b"task"})
        for site in (busy, waiting):
            site.task()
            site.offer(BIG, digest(b"task"))
        busy.hear("take")
        wait_until(lambda: len(transport._open) == 4)
        transport.farewell([], "that is all", 0)
        transport.close()
        for site in (mute, busy, waiting):
            bye = site.hear("bye")
            assert (bye.why, bye.finished) == ("that is all", True)
    for site in (mute, busy, waiting, deaf):
        site.close()
    wait_until(lambda: open_files() <= before + 2)


def test_connections_come_and_go_and_leave_nothing_behind(transport: GrpcTransport, keyring: Path) -> None:
    def visit() -> None:
        with Raw(transport.address, keyring / "ann") as site:
            task = site.task()
            site.offer(BIG, task.digest)
            site.hear("take")
            site.chunk(BIG, 0)
        wait_until(lambda: not transport._open)

    asked = Asking(transport, {"ann": b"task"})
    for _ in range(3):
        visit()
    files, threads = open_files(), threading.active_count()
    for _ in range(10):
        visit()
    wait_until(lambda: open_files() <= files + 2)
    wait_until(lambda: threading.active_count() <= threads + 2)
    transport.stop()
    with pytest.raises(StoppedError):
        asked.done()


def test_a_listener_that_stops_listening_leaves_no_file(
    transport: GrpcTransport, keyring: Path, tmp_path: Path
) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        uploading = threading.Thread(target=lambda: upload(site, site.task()), daemon=True)
        uploading.start()
        arrival = next(iter(transport.exchange({"ann": b"task"}, 20)))
        assert arrival.data == BIG
        uploading.join(20)
    wait_until(lambda: not list((tmp_path / "spool").iterdir()))


def test_who_is_at_work_is_not_asked_again(transport: GrpcTransport, keyring: Path) -> None:
    """A caller that asks somebody else too and goes on: the buffered rounds do."""
    with Raw(transport.address, keyring / "ann") as ann, Raw(transport.address, keyring / "bob") as bob:
        list(transport.exchange({"ann": b"long"}, 0.0))
        first = ann.task()
        asked = Asking(transport, {"ann": b"long", "bob": b"short"})
        bob.offer(b"b", bob.task().digest)
        ann.offer(b"a", first.digest)
        ann.hear("kept")
        assert asked.done() == {"ann": b"a", "bob": b"b"}
        assert "offer" not in ann.passed
        again = Asking(transport, {"ann": b"long"})
        assert ann.task().digest == first.digest, "it was heard, so it is asked anew"
        ann.offer(b"a", first.digest)
        assert again.done() == {"ann": b"a"}


def test_what_came_and_was_not_fetched_is_kept_for_the_same_question_alone(
    transport: GrpcTransport, keyring: Path, seen: Seen, tmp_path: Path
) -> None:
    with Raw(transport.address, keyring / "ann") as site:
        for question in (b"same", b"another"):
            list(transport.exchange({"ann": b"same"}, 0.0))
            task = site.task()
            upload(site, task)
            assert not seen.of("refused")
            asked = Asking(transport, {"ann": question}, deadline_s=0.3)
            assert asked.done() == ({"ann": BIG} if question == b"same" else {})
        assert seen.whys("refused", "ann") == ["late: it came after its round was closed"]
        assert not list((tmp_path / "spool").iterdir())


def test_a_revoked_site_is_shown_out_and_stays_out(tmp_path: Path, seen: Seen) -> None:
    keyring = make_keys(tmp_path / "keys")
    enrol(keyring, "dan")
    with listening(keyring, tmp_path / "spool", watch=seen) as transport:
        running = Running(transport.address, keyring / "dan", lambda task: b"", tmp_path / "dan")
        wait_until(lambda: transport.nodes() == ["dan"])
        keys.revoke(keyring / "server", "dan")
        assert running.ended()
        assert "the certificate was revoked" in str(running.error)
        assert seen.whys("rejected", "dan") == ["its certificate was revoked"]
        wait_until(lambda: not transport.nodes())
        with Raw(transport.address, keyring / "dan", hello=False) as again:
            assert again.status() is grpc.StatusCode.UNAVAILABLE


def test_a_roster_that_cannot_be_read_shows_nobody_out(tmp_path: Path, seen: Seen) -> None:
    keyring = make_keys(tmp_path / "keys")
    roster = keyring / "server" / "roster"
    with (
        listening(keyring, tmp_path / "spool", watch=seen) as transport,
        Raw(transport.address, keyring / "ann") as site,
    ):
        roster.rename(tmp_path / "elsewhere")
        seen.wait("alarm", times=2)
        (tmp_path / "elsewhere").rename(roster)
        assert transport.nodes() == ["ann"]
        asked = Asking(transport, {"ann": b"task"})
        site.offer(b"reply", site.task().digest)
        assert asked.done() == {"ann": b"reply"}


def test_an_address_in_use_and_keys_that_are_none_are_said(
    transport: GrpcTransport, keyring: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=f"cannot listen on {transport.address}"):
        GrpcTransport(transport.address, keyring / "server", tmp_path / "other").start()
    with pytest.raises(IdentityError, match="ca.crt"):
        GrpcTransport("127.0.0.1:0", tmp_path, tmp_path / "other")


STRANGERS = """
import socket, ssl, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
import grpc
from fedpeft.runtime.grpc import credentials

folder, until = Path(sys.argv[1]), time.monotonic() + 3
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", credentials.server_credentials(folder / "server"))
server.start()
context = ssl.create_default_context(cafile=folder / "ann" / "ca.crt")
context.set_alpn_protocols(["h2"])

def knock():
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as line:
            with context.wrap_socket(line, server_hostname="localhost") as stranger:
                stranger.recv(1)

threads = [threading.Thread(target=knock) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
server.stop(None).wait()
print("alive")
"""


def test_many_strangers_at_the_door_at_once_do_not_break_it(keyring: Path) -> None:
    """gRPC frees what a handshake reads when another one changes the configuration."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGERS, str(keyring)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


def test_a_stranger_who_says_nothing_costs_nothing_to_others(transport: GrpcTransport, keyring: Path) -> None:
    host, _, port = transport.address.rpartition(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(50)]
    for stranger in strangers[:25]:
        stranger.sendall(b"\x16\x03\x01\x02\x00")
    began = time.monotonic()
    with Raw(transport.address, keyring / "ann"):
        assert transport.nodes() == ["ann"]
    assert time.monotonic() - began < 15
    for stranger in strangers:
        stranger.close()
