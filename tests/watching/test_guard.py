"""A watcher that fails ends nothing."""

import threading
from pathlib import Path

import pytest

from fedpeft.federation import Event, Happening, everyone
from fedpeft.watching.guard import Guarded
from tests.watching.story import story


class Sulking:
    """Fails while it is told to."""

    def __init__(self) -> None:
        self.fails = True
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        if self.fails:
            raise OSError(28, "No space left on device\x1b[2J")


def test_the_others_are_told_and_the_first_failure_of_a_row_is_said() -> None:
    sulking, seen, said = Sulking(), list[Event](), list[str]()
    watch = everyone(Guarded(sulking, said.append), Guarded(seen.append, said.append))
    events = story()
    for event in events:
        watch(event)
    assert seen == sulking.seen == events
    assert len(said) == 1
    assert "Sulking failed" in said[0]
    assert "No space left" in said[0]
    assert "\x1b" not in said[0]
    sulking.fails = False
    watch(events[0])
    sulking.fails = True
    watch(events[0])
    assert len(said) == 2


def test_one_that_cannot_even_say_it_ends_nothing() -> None:
    def say(text: str) -> None:
        raise BrokenPipeError

    Guarded(Sulking(), say)(Event(Happening.FINISHED))


def test_being_stopped_is_no_failure() -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(stop, print)(Event(Happening.FINISHED))


def test_many_threads_fail_and_it_is_said_once() -> None:
    said: list[str] = []
    watch = Guarded(Sulking(), said.append)
    threads = [threading.Thread(target=lambda: [watch(event) for event in story()]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1


def test_a_run_goes_on_when_every_watcher_fails(tmp_path: Path) -> None:
    from fedpeft.federation import Journal, Plan, Server
    from fedpeft.runtime.memory import MemoryTransport
    from tests.federation import world

    said: list[str] = []
    plan = Plan(rounds=2)
    with Journal(tmp_path / "journal") as journal:
        transport = MemoryTransport(world.clients(None))
        server = Server(plan, world.SPACE, world.START, transport, journal, watch=Guarded(Sulking(), said.append))
        assert [metrics["round"] for metrics in server.run()] == [1, 2]
    assert len(said) == 1
