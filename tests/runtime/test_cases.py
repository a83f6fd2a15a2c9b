"""What goes wrong between organisations, as whole runs over real connections: every case ends as it should."""

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from fedpeft._proto import federation_pb2 as fpb
from fedpeft._proto import session_pb2 as pb
from fedpeft.codecs import Context, ErrorFeedback, Fragments, Identity, Ternary, Uniform
from fedpeft.errors import JournalError, QuorumError, RunError
from fedpeft.federation import Handler, Journal, Plan, Server, ServerOptimizer, broadcast, messages
from fedpeft.runtime.grpc.link import Link
from fedpeft.runtime.grpc.server import GrpcTransport, Limits
from fedpeft.runtime.grpc.spool import PIECE
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.space import Space
from fedpeft.training import Settings
from tests.federation import world
from tests.federation.world import SPACE, START, Tampering
from tests.runtime.site_world import NAMES, BadLine, Raw, Running, Seen, listening, update, wait_until

PLAN = Plan(rounds=3, codec=ErrorFeedback(Ternary(density=0.3)), broadcast=Uniform(bits=4), deadline_s=20)
BIG = update(os.urandom(24 * PIECE))


class Federation:
    """A server over gRPC, its sites, and what was seen."""

    def __init__(self, stack: ExitStack, keyring: Path, folder: Path, **options: Any) -> None:
        self._stack, self._keyring, self._folder = stack, keyring, folder
        self.seen = Seen()
        self.transport: GrpcTransport = stack.enter_context(
            listening(keyring, folder / "spool", watch=self.seen, **options)
        )
        self.clients: dict[str, Handler] = dict(world.clients(folder / "sites"))

    def site(self, name: str, handler: Handler | None = None, address: str = "") -> Running:
        return self._stack.enter_context(
            Running(
                address or self.transport.address,
                self._keyring / name,
                handler or self.clients[name],
                self._folder / f"spool-{name}",
            )
        )

    def raw(self, name: str, **options: Any) -> Raw:
        return self._stack.enter_context(Raw(self.transport.address, self._keyring / name, **options))

    def until(self, *names: str) -> None:
        wait_until(lambda: self.transport.nodes() == sorted(names))

    def server(self, plan: Plan) -> Server:
        self.journal = self._stack.enter_context(Journal(self._folder / "journal"))
        return Server(plan, SPACE, START, self.transport, self.journal, watch=self.seen)


@pytest.fixture
def federation(keyring: Path, tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    with ExitStack() as stack:
        yield lambda **options: Federation(stack, keyring, tmp_path / "grpc", **options)


def in_memory(folder: Path, plan: Plan, absent: tuple[str, int] = ("", 0)) -> Server:
    """The same run without a network; a node may be absent from one round on."""
    transport = Tampering(world.clients(folder / "sites"))
    node, number = absent
    transport.tamper = lambda name, data: None if name == node and world.round_of(data) >= number else data
    with Journal(folder / "journal") as journal:
        server = Server(plan, SPACE, START, transport, journal)
        list(server.run())
    return server


def answering(site: Raw, handler: Handler, forge: Callable[[int, bytes], bytes] = lambda number, data: data) -> None:
    """Let a hand-made site answer each task, with what `forge` makes of the right reply."""

    def serve() -> None:
        with suppress(AssertionError, queue.Empty):
            while True:
                task = site.task()
                site.offer(forge(fpb.Task.FromString(task.data).round, handler(task.data)), task.digest)

    threading.Thread(target=serve, daemon=True).start()


def of_another_run(data: bytes, tmp_path: Path) -> bytes:
    transport = Tampering(world.clients(None))
    heard: dict[int, bytes] = {}
    transport.tamper = lambda node, data: heard.setdefault(world.round_of(data), data) if node == "bob" else data
    with Journal(tmp_path / "another") as journal:
        list(Server(replace(PLAN, rounds=2), SPACE, START, transport, journal).run())
    return heard[2]


def of_another_base_model(data: bytes) -> bytes:
    head, _ = messages.split(data)
    other, ctx = Space(SPACE.slots, SPACE.config, "cd" * 32), Context(0, 2, 2)
    codec = PLAN.update_codec
    parts = codec.encode(torch.ones(SPACE.numel), other, ctx)
    return messages.join(head, broadcast.pack(parts, codec, other, head.run, ctx))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("of the round before", "late: round 1 is closed, this is round 2"),
        ("of a future round", "other round: expected round 2, got 3"),
        ("of another run", "other run: expected run"),
        ("of another base model", "bad payload: fingerprint"),
        ("of no weight", "bad payload: weight"),
        ("of an infinite weight", "bad payload: weight"),
    ],
)
def test_a_reply_that_is_not_for_this_round_is_refused_and_leaves_no_trace(
    federation: Callable[..., Federation], tmp_path: Path, kind: str, reason: str
) -> None:
    sent: dict[int, bytes] = {}

    def forge(number: int, data: bytes) -> bytes:
        sent[number] = data
        if number != 2:
            return data
        match kind:
            case "of the round before":
                return sent[1]
            case "of a future round":
                return world.reply(data, round=3)
            case "of another run":
                return of_another_run(data, tmp_path)
            case "of another base model":
                return of_another_base_model(data)
            case "of no weight":
                return world.reply(data, weight=0.0)
        return world.reply(data, weight=float("inf"))

    run, plan = federation(), replace(PLAN, rounds=2, quorum=0.6)
    for name in ("ann", "cat"):
        run.site(name)
    answering(run.raw("bob"), run.clients["bob"], forge)
    run.until(*NAMES)
    server = run.server(plan)
    assert [row["counted"] for row in server.run()] == [3, 2]
    (why,) = run.seen.whys("refused", "bob")
    assert why.startswith(reason)
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan, ("bob", 2)).state.vector)


def test_an_old_reply_to_an_old_task_is_not_even_sent(federation: Callable[..., Federation]) -> None:
    run = federation()
    site = run.raw("ann")
    list(run.transport.exchange({"ann": b"first"}, 0.0))
    first = site.task()
    list(run.transport.exchange({"ann": b"second"}, 0.0))
    site.task()
    site.offer(BIG, first.digest)
    drop = site.hear("drop")
    assert drop.reason == "late"
    assert site.heard.empty(), "nobody asks for the bytes"
    assert run.seen.whys("refused", "ann") == ["late: it answers no task that is open; its round was closed"]


@pytest.mark.parametrize("second", ["the same", "another"])
def test_a_site_that_replies_twice_is_counted_once(
    federation: Callable[..., Federation], tmp_path: Path, second: str
) -> None:
    run = federation()
    go = threading.Event()
    for name in ("ann", "cat"):
        run.site(name, lambda task, name=name: run.clients[name](task) if go.wait(20) else b"")
    site = run.raw("bob")
    run.until(*NAMES)

    def twice() -> None:
        task = site.task()
        reply = run.clients["bob"](task.data)
        site.offer(reply, task.digest)
        site.hear("kept")
        site.offer(reply if second == "the same" else world.reply(reply, weight=9.0), task.digest)
        site.hear("kept" if second == "the same" else "drop")
        site.close()
        with Raw(run.transport.address, Path(run._keyring / "bob")) as back:
            back.offer(reply, task.digest)
            back.hear("kept")
            go.set()

    thread = threading.Thread(target=twice)
    thread.start()
    plan = replace(PLAN, rounds=1)
    server = run.server(plan)
    (row,) = server.run()
    thread.join(20)
    assert row["counted"] == 3
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan).state.vector)
    assert len(run.seen.of("alarm", "bob")) == (second == "another")


def test_clocks_that_differ_by_an_hour_change_nothing(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, skews = time.time, {"site ann": 3600.0, "site bob": -3600.0, "worker": -3600.0}
    monkeypatch.setattr(time, "time", lambda: genuine() + skews.get(threading.current_thread().name, 0.0))
    run = federation()
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    server = run.server(PLAN)
    assert [row["counted"] for row in server.run()] == [3, 3, 3]
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", PLAN).state.vector)


@pytest.mark.parametrize("buffer", [0, 2], ids=["rounds", "overlapped"])
def test_fragments_in_turn_with_an_outer_momentum(
    federation: Callable[..., Federation], tmp_path: Path, buffer: int
) -> None:
    plan = replace(
        PLAN,
        rounds=7,
        codec=ErrorFeedback(Fragments(Uniform(bits=4), count=2)),
        optimizer=ServerOptimizer("SGD(lr=0.7, momentum=0.9, nesterov=True)"),
        settings=Settings(start="own"),
        buffer=buffer,
    )
    run = federation()
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    server = run.server(plan)
    assert [row["counted"] for row in server.run()] == [buffer or 3] * 7
    if buffer:
        accepted = [record for record in world.log(run.journal) if record["kind"] == "ACCEPT"]
        assert any(record["base"] < record["round"] for record in accepted), "a site trained on while others sent"
    else:
        assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan).state.vector)


def test_who_opens_many_connections_is_one_site(federation: Callable[..., Federation]) -> None:
    run = federation()
    raws = [run.raw("ann") for _ in range(5)]
    assert run.transport.nodes() == ["ann"]

    threading.Thread(target=lambda: raws[-1].offer(b"reply", raws[-1].task().digest), daemon=True).start()
    assert [arrival.node for arrival in run.transport.exchange({"ann": b"task"}, 20)] == ["ann"]
    assert all(raw.hear("bye").why == "the site connected anew" for raw in raws[:-1])


@pytest.mark.parametrize("when", ["before it is asked", "when it is asked", "in the middle of its reply"])
def test_a_site_that_dies_is_not_waited_for_beyond_the_deadline(
    federation: Callable[..., Federation], tmp_path: Path, when: str
) -> None:
    run, plan = federation(), replace(PLAN, rounds=1, quorum=0.6, deadline_s=2.0)
    for name in ("ann", "cat"):
        run.site(name)
    dying = run.raw("bob")
    run.until(*NAMES)
    server = run.server(plan)

    def die() -> None:
        if when != "before it is asked":
            task = dying.task()
        if when == "in the middle of its reply":
            dying.offer(BIG, task.digest)
            dying.hear("take")
            dying.chunk(BIG, 0)
        dying.close()
        run.until("ann", "cat")

    if when == "before it is asked":
        run.seen.then["opened"] = die
    else:
        threading.Thread(target=die, daemon=True).start()
    (row,) = server.run()
    assert row["counted"] == 2
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan, ("bob", 1)).state.vector)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes from which on the sites were asked for their replies."""
    offsets: list[int] = []
    genuine = Link.handle

    def handle(self: Link, frame: pb.Frame) -> None:
        if self.peer == "server" and frame.WhichOneof("frame") == "take":
            offsets.append(frame.take.offset)
        genuine(self, frame)

    monkeypatch.setattr(Link, "handle", handle)
    return offsets


@contextmanager
def over(run: Federation, name: str, handler: Handler, cut_after: int) -> Iterator[BadLine]:
    with BadLine(run.transport.address, cut_after) as line:
        run.site(name, handler, line.address)
        yield line


def test_an_upload_goes_on_at_the_byte_where_it_stopped(
    federation: Callable[..., Federation], takes: list[int]
) -> None:
    run, worked = federation(), []
    with over(run, "ann", lambda task: worked.append(task) or BIG, cut_after=12 * PIECE) as line:
        run.until("ann")
        (arrival,) = run.transport.exchange({"ann": b"task"}, 20)
        assert arrival.data == BIG
        assert worked == [b"task"]
        assert takes[0] == 0
        assert all(offset > 0 for offset in takes[1:])
        run.transport.close()
    assert len(takes) > 1
    assert line.up_bytes < 2 * len(BIG)


def test_a_line_that_breaks_again_and_again_carries_each_reply_once(
    federation: Callable[..., Federation], takes: list[int], tmp_path: Path
) -> None:
    run, worked = federation(), []
    with over(run, "ann", lambda task: worked.append(task) or BIG + task, cut_after=5 * PIECE) as line:
        for task in (b"one", b"two"):
            wait_until(run.transport.nodes)
            (arrival,) = run.transport.exchange({"ann": task}, 20)
            assert arrival.data == BIG + task
            del arrival
        assert line.connections > 8
    assert worked == [b"one", b"two"]
    assert sum(offset > 0 for offset in takes) > 5
    assert not list((tmp_path / "grpc" / "spool").iterdir())


def test_when_all_die_the_round_fails_and_can_be_taken_up_again(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    run, plan = federation(), replace(PLAN, rounds=1, deadline_s=2.0)

    def die(site: Raw) -> None:
        task = site.task()
        site.offer(BIG, task.digest)
        site.close()

    for name in NAMES:
        threading.Thread(target=die, args=(run.raw(name),), daemon=True).start()
    run.until(*NAMES)
    server = run.server(plan)
    with pytest.raises(QuorumError, match="0 of 3 clients were counted, 3 needed: nobody else answered within 2 s"):
        list(server.run())
    assert server.state.round == 0
    assert torch.equal(server.state.vector, START)
    wait_until(lambda: not run.transport.nodes())
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    (row,) = server.run()
    assert row["counted"] == 3
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan).state.vector)


def test_who_is_slow_on_purpose_holds_nobody_up(federation: Callable[..., Federation], tmp_path: Path) -> None:
    """One who never greets, one whose reply drips: the deadline ends the round, and the one place is not theirs."""
    run = federation(limits=Limits(uploads=1, silent_s=0.01))
    run.raw("cat", hello=False)
    dripping = run.raw("bob")
    begun = threading.Event()

    def big(task: bytes) -> bytes:
        assert begun.wait(20)
        return BIG

    run.site("ann", big)
    run.until("ann", "bob")

    def drip() -> None:
        task = dripping.task()
        dripping.offer(BIG, task.digest)
        dripping.hear("take")
        begun.set()

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    arrivals = {arrival.node: arrival.data for arrival in run.transport.exchange({"ann": b"t", "bob": b"t"}, 3.0)}
    assert arrivals == {"ann": BIG}
    assert time.monotonic() - began < 15


def test_ten_times_as_many_connections_are_turned_away_in_little_memory(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    run = federation(limits=Limits(sessions=6))
    before = psutil.Process().memory_info().rss
    crowd = [run.raw(NAMES[i % 3], hello=False) for i in range(60)]
    wait_until(lambda: sum(raw.error is not None for raw in crowd) == 54)
    assert {raw.status() for raw in crowd if raw.error is not None} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len([t for t in threading.enumerate() if t.name.startswith("from ")]) <= 6
    assert psutil.Process().memory_info().rss - before < 100 << 20
    for raw in crowd:
        raw.close()
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    server = run.server(PLAN)
    assert [row["counted"] for row in server.run()] == [3, 3, 3]


def test_a_straggler_is_refused_as_late_before_it_sends_its_bytes(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    run = federation()
    plan = replace(PLAN, rounds=2, quorum=0.6, deadline_s=2.0)
    for name in ("ann", "cat"):
        run.site(name)
    slow = run.raw("bob")
    run.until(*NAMES)
    heard: list[Any] = []

    def straggle() -> None:
        first = slow.task()
        second = slow.task()
        slow.offer(BIG, first.digest)
        heard.append(slow.heard.get(timeout=20))
        slow.offer(run.clients["bob"](second.data), second.digest)

    threading.Thread(target=straggle, daemon=True).start()
    server = run.server(plan)
    assert [row["counted"] for row in server.run()] == [2, 3]
    assert heard[0].WhichOneof("frame") == "drop"
    assert heard[0].drop.reason == "late"
    assert run.seen.whys("refused", "bob") == ["late: it answers no task that is open; its round was closed"]


@pytest.mark.parametrize("order", list(permutations(NAMES))[::2])
def test_replies_in_any_order_give_the_same_bits(
    federation: Callable[..., Federation], tmp_path: Path, order: tuple[str, ...]
) -> None:
    run, plan = federation(), replace(PLAN, rounds=2)

    def after_the_one_before(name: str) -> Handler:
        place = order.index(name)

        def handler(task: bytes) -> bytes:
            number = fpb.Task.FromString(task).round
            wait_until(lambda: len([e for e in run.seen.of("counted") if e.round == number]) == place)
            return run.clients[name](task)

        return handler

    for name in NAMES:
        run.site(name, after_the_one_before(name))
    run.until(*NAMES)
    server = run.server(plan)
    assert [row["counted"] for row in server.run()] == [3, 3]
    assert [event.node for event in run.seen.of("counted")] == [*order, *order]
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan).state.vector)


def test_a_disk_that_is_full_for_a_while_costs_the_site_its_connection_and_nothing_else(
    federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, full = os.pwrite, [4]

    def write(file: int, data: memoryview, offset: int) -> int:
        if offset == 3 * PIECE and full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(file, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    run = federation()
    site = run.site("ann", lambda task: BIG)
    run.until("ann")
    (arrival,) = run.transport.exchange({"ann": b"task"}, 20)
    assert arrival.data == BIG
    assert sum("the server cannot keep what it is sent" in line for line in site.said) == 4
    assert len([why for why in run.seen.whys("disconnected", "ann") if "No space left" in why]) == 4


def test_a_disk_that_fails_at_any_step_of_the_journal_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, left = replace(PLAN, rounds=2), [0]

    def fsync(file: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(failure := (errno.ENOSPC, errno.EIO)[step % 2], os.strerror(failure))

    monkeypatch.setattr(os, "fsync", fsync)
    wanted = in_memory(tmp_path / "plain", plan).state.vector
    for step in range(1, 200):
        folder = tmp_path / str(step)
        transport = MemoryTransport(world.clients(folder / "sites"))
        try:
            with Journal(folder / "journal") as journal:
                left[0] = step
                list(Server(plan, SPACE, START, transport, journal).run())
        except (OSError, RunError):
            with Journal(folder / "journal") as journal:
                server = Server(plan, SPACE, START, transport, journal)
                list(server.run())
                assert torch.equal(server.state.vector, wanted), f"other bits after step {step}"
        else:
            break
    assert step > 30


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_a_damaged_state_is_never_used(tmp_path: Path, damage: bytes | None) -> None:
    plan = replace(PLAN, rounds=2)
    in_memory(tmp_path, plan)
    with Journal(tmp_path / "journal") as journal:
        state = next(r["state"] for r in reversed(journal.records) if r["kind"] == "COMMIT")
        path = tmp_path / "journal" / "blobs" / state
        path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
        with pytest.raises(JournalError, match="the content is not what the name says"):
            Server(plan, SPACE, START, MemoryTransport({}), journal)


def test_a_damaged_state_of_a_site_is_never_used(tmp_path: Path) -> None:
    plan = replace(PLAN, rounds=2, quorum=0.6)
    transport = MemoryTransport(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        rounds = Server(plan, SPACE, START, transport, journal).run()
        next(rounds)
        path = tmp_path / "sites" / "bob"
        torn = path.read_bytes()[:-1]
        path.write_bytes(torn)
        assert next(rounds)["counted"] == 2
        (record,) = journal.of("REFUSE", 2)
    assert "not what its checksum says; restore it from a backup or delete it" in record["why"]
    assert path.read_bytes() == torn


def test_a_run_taken_up_again_draws_the_same_cohorts_and_its_optimizer_goes_on(tmp_path: Path) -> None:
    plan = replace(PLAN, rounds=6, cohort=2, optimizer=ServerOptimizer("SGD(lr=0.7, momentum=0.9, nesterov=True)"))
    plain = in_memory(tmp_path / "plain", plan)
    clients = world.clients(tmp_path / "sites")
    for _ in range(6):
        with Journal(tmp_path / "journal") as journal:
            server = Server(plan, SPACE, START, MemoryTransport(clients), journal)
            next(server.run())
            cohorts = [journal.of("OPEN", number)[0]["cohort"] for number in range(1, server.state.round + 1)]
    with Journal(tmp_path / "plain" / "journal") as journal:
        assert cohorts == [journal.of("OPEN", number)[0]["cohort"] for number in range(1, 7)]
    assert torch.equal(server.state.vector, plain.state.vector)
    assert all(torch.equal(server.state.optimizer[name], plain.state.optimizer[name]) for name in plain.state.optimizer)
    assert plain.state.optimizer


def test_a_buffered_run_does_not_wait_for_a_slow_site_and_counts_it_when_it_comes(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    run, go = federation(), threading.Event()
    slow = run.clients["cat"]
    run.clients["cat"] = lambda task: slow(task) if go.wait(20) else b""
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    rows = run.server(replace(PLAN, rounds=6, buffer=2)).run()
    assert [sorted(next(rows)["sites"]) for _ in range(3)] == [["ann", "bob"]] * 3
    go.set()
    wait_until(lambda: len(run.transport._desk._inbox) == 1)
    assert "cat" in next(rows)["sites"]
    assert len(list(rows)) == 2
    assert run.seen.of("asked", "cat")[0].round == 1
    assert not run.seen.of("refused")


def test_a_lossless_run_is_the_same_over_both_transports(federation: Callable[..., Federation], tmp_path: Path) -> None:
    run, plan = federation(), Plan(rounds=3, codec=Identity(), deadline_s=20)
    for name in NAMES:
        run.site(name)
    run.until(*NAMES)
    server = run.server(plan)
    assert [row["counted"] for row in server.run()] == [3, 3, 3]
    assert torch.equal(server.state.vector, in_memory(tmp_path / "memory", plan).state.vector)
