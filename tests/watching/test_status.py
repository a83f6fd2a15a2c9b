"""The picture of a run, in memory and as any process reads it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpeft.errors import JournalError
from fedpeft.federation import Event, Happening
from fedpeft.watching import picture
from fedpeft.watching.guard import Guarded
from fedpeft.watching.picture import Picture, SitePicture
from fedpeft.watching.status import Status
from tests.watching.story import SITES, hostile, row, story


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_a_run_has_its_picture(tmp_path: Path) -> None:
    began = time.time()
    with Status(tmp_path, "demo", 2, (*SITES, "dan")) as status:
        assert picture.read(tmp_path).state() == "running"
        for event in story():
            status(event)
        seen = status.picture()
    assert (seen.name, seen.round, seen.rounds, seen.finished, seen.pid) == ("demo", 2, 2, True, os.getpid())
    assert (seen.loss, seen.accuracy) == (0.5, 0.5)
    assert seen.failure == "round 1: round 1: 1 of 3 counted"
    ann, bob, cat, dan = (seen.sites[name] for name in (*SITES, "dan"))
    assert (ann.state, ann.version, ann.round, ann.loss) == ("idle", "0.1.0", 2, 1.5)
    assert (ann.up_bytes, ann.down_bytes, bob.up_bytes) == (200, 2000, 300)
    assert (cat.state, cat.round, cat.up_bytes) == ("away", 0, 100)
    assert cat.refusal.startswith("bad payload: norm")
    assert dan == SitePicture()
    assert began <= (ann.last_seen or 0) <= time.time()
    left = picture.read(tmp_path)
    assert left.sites == seen.sites
    assert left.state() == "finished"


def test_the_file_follows_within_moments_and_a_heartbeat_tells_that_the_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft.watching.status._HEARTBEAT_S", 0.05)
    with Status(tmp_path, "demo", 2) as status:
        status(Event(Happening.CONNECTED, "ann"))
        until(lambda: picture.read(tmp_path).sites.keys() == {"ann"})
        status(Event(Happening.COMMITTED, round=1, facts=row(1)))
        until(lambda: picture.read(tmp_path).round == 1)
        beat = picture.read(tmp_path).updated
        until(lambda: picture.read(tmp_path).updated > beat)
        assert picture.read(tmp_path).ended is None
    assert picture.read(tmp_path).ended is not None
    assert picture.read(tmp_path).state() == "stopped"


def test_a_flood_of_events_is_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(picture, "write", lambda folder, text: writes.append(text))
    began = time.monotonic()
    with Status(tmp_path, "demo", 2) as status:
        for _ in range(2000):
            status(Event(Happening.WORKING, "ann", facts={"state": "training"}))
    assert len(writes) <= 3 + (time.monotonic() - began) / 0.5


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    known = Picture(name="demo", rounds=1, sites={f"site-{i}": SitePicture() for i in range(2000)}).model_dump_json()
    picture.write(tmp_path, known)
    writer = threading.Thread(target=lambda: [picture.write(tmp_path, known) for _ in range(100)])
    writer.start()
    while writer.is_alive():
        assert len(picture.read(tmp_path).sites) == 2000
    writer.join()


def test_threads_lose_nothing(tmp_path: Path) -> None:
    def tell() -> None:
        for event in story() * 20:
            status(event)

    with Status(tmp_path, "demo", 2, SITES) as status:
        threads = [threading.Thread(target=tell) for _ in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            picture.read(tmp_path)
            status.picture()
        for thread in threads:
            thread.join()
    assert picture.read(tmp_path).sites["bob"].up_bytes == 2 * 20 * 6 * 150
    assert [path.name for path in tmp_path.iterdir()] == [picture.NAME]


def test_hostile_texts_and_names(tmp_path: Path) -> None:
    with Status(tmp_path, "demo", 2, SITES) as status:
        for event in hostile():
            status(event)
    seen = picture.read(tmp_path)
    assert seen.sites.keys() == set(SITES)
    texts = [seen.failure, *(text for site in seen.sites.values() for text in (site.refusal, site.version, site.state))]
    assert all(text.isprintable() and len(text) < 600 for text in texts)


def test_a_resumed_run_begins_where_it_stands(tmp_path: Path) -> None:
    with Status(tmp_path, "demo", 9, SITES) as status:
        status.recall([row(1), row(2)])
    seen = picture.read(tmp_path)
    assert (seen.round, seen.accuracy) == (2, 0.5)
    assert (seen.sites["bob"].round, seen.sites["bob"].up_bytes, seen.sites["bob"].down_bytes) == (2, 300, 2000)
    assert seen.sites["cat"] == SitePicture()


def test_an_update_of_a_site_that_left_does_not_bring_it_back(tmp_path: Path) -> None:
    status = Status(tmp_path, "demo", 2)
    for kind in (Happening.CONNECTED, Happening.DISCONNECTED, Happening.COUNTED):
        status(Event(kind, "ann", 1, {"up_bytes": 3}))
    assert status.picture().sites["ann"].state == "away"
    assert status.picture().sites["ann"].round == 1


def test_a_folder_that_cannot_be_written_is_said_once_and_the_picture_lives(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    folder.mkdir()
    with Status(folder, "demo", 2) as status:
        watch = Guarded(status, said.append)
        (folder / picture.NAME).unlink()
        (folder / picture.NAME).mkdir()
        until(lambda: [watch(Event(Happening.COMMITTED, round=1, facts=row(1))), said][1] != [])
        watch(Event(Happening.FINISHED, round=1))
        assert status.picture().finished
        assert len(said) == 1
        assert "could not be written" in said[0]
        (folder / picture.NAME).rmdir()
    assert picture.read(folder).finished


def test_who_stopped_is_told_from_who_waits(tmp_path: Path) -> None:
    now = time.time()
    assert Picture(name="x", rounds=1, updated=now).state() == "running"
    assert Picture(name="x", rounds=1, updated=now - 600).state() == "stopped"
    assert Picture(name="x", rounds=1, updated=now - 600, finished=True).state() == "finished"
    assert Picture(name="x", rounds=1, updated=now, ended=now).state() == "stopped"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert Picture(name="x", rounds=1, updated=now, pid=gone.pid).state() == "stopped"
    assert (
        Picture(name="x", rounds=1, updated=now, pid=gone.pid, host=f"not-{socket.gethostname()}").state() == "running"
    )
    assert Picture(name="x", rounds=1, updated=now, pid=1).state() == "running"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b'{"name": "x", "rounds": 2', "damaged"),
        (b'{"name": "x", "rounds": "two"}', "rounds"),
        (b'{"name": "x", "rounds": 2, "sites": {"a": {"up_bytes": -1}}}', "sites.a.up_bytes"),
        (b"\xff\xfe", "damaged"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / picture.NAME).write_bytes(content)
    with pytest.raises(JournalError, match=message) as caught:
        picture.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_later_version_may_write_more(tmp_path: Path) -> None:
    picture.write(tmp_path, json.dumps({"name": "x", "rounds": 2, "colour": "red"}))
    assert picture.read(tmp_path).rounds == 2
