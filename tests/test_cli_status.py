"""`fedpeft status`, and the table of a server that it shares: real processes, real terminals' bytes."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fedpeft.cli import server_view
from fedpeft.cli.server_view import ServerView, ago, sites_table
from fedpeft.federation import Event, Happening
from fedpeft.watching import picture
from fedpeft.watching.picture import Picture, SitePicture
from fedpeft.watching.status import Status
from tests.watching.story import HOSTILE, SITES, hostile, row, story

RUNNING, STOPPED, NO_SUCH_RUN = 0, 3, 1


def status(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedpeft.cli", "status", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def leave(run: Path, **more: object) -> Path:
    run.mkdir(parents=True)
    sites = {"ann": SitePicture(state="training", round=2, loss=1.25, up_bytes=2500, last_seen=time.time())}
    seen = Picture(**{"name": run.name, "rounds": 9, "round": 2, "updated": time.time(), "sites": sites} | more)
    picture.write(run, seen.model_dump_json())
    return run


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()  # another folder of that name is in nobody's way
    leave(tmp_path / "runs" / "demo", loss=0.5, accuracy=0.75, failure="round 1: too few")
    shown = status("demo", folder=tmp_path)
    assert shown.returncode == RUNNING, shown.stderr
    assert "demo: running, round 2 of 9, loss 0.500, accuracy 0.750" in shown.stdout
    assert "last failure: round 1: too few" in shown.stdout
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("ann"))
    assert line.split()[1:7] == ["training", "2", "1.250", "2.5", "kB", "0"]
    assert line.rstrip().endswith("ago")


def test_a_run_whose_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fedpeft.watching.status import Status\n"
        "with Status(Path(sys.argv[1]), 'demo', 9): print('up', flush=True); time.sleep(600)"
    )
    (tmp_path / "demo").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == "up\n"
            alive = status("demo", folder=tmp_path)
        finally:
            server.kill()
    assert (alive.returncode, "running" in alive.stdout) == (RUNNING, True), alive.stdout + alive.stderr
    dead = status("demo", folder=tmp_path)
    assert dead.returncode == STOPPED
    assert "demo: stopped" in dead.stdout


def test_the_newest_run_is_shown_if_none_is_named(tmp_path: Path) -> None:
    for age, name in ((100, "older"), (50, "newest"), (200, "oldest")):
        os.utime(leave(tmp_path / "runs" / name, finished=True) / picture.NAME, (time.time() - age,) * 2)
    shown = status(folder=tmp_path)
    assert shown.returncode == RUNNING
    assert shown.stdout.startswith("newest: finished")


def test_json_is_the_whole_object(tmp_path: Path) -> None:
    run = leave(tmp_path / "elsewhere" / "demo", ended=1.0, failure=HOSTILE[1])
    shown = status("--json", str(run), folder=tmp_path)
    assert shown.returncode == STOPPED
    raw = json.loads(shown.stdout)
    assert raw.pop("state") == "stopped"
    assert Picture.model_validate(raw) == picture.read(run)
    assert "\x1b" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs/ holds no run of a server"),
        (["nowhere"], "'nowhere' is no run"),
        (["simulated"], "status.json is missing"),
        (["damaged"], "is damaged"),
        (["[red]"], "'[red]' is no run"),
    ],
)
def test_no_such_run(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "simulated").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / picture.NAME).write_text("{")
    shown = status(*arguments, folder=tmp_path)
    assert shown.returncode == NO_SUCH_RUN
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_names_and_texts_from_outside_neither_style_nor_break_the_table(tmp_path: Path) -> None:
    sites = {text or "-": SitePicture(refusal=text, state=text, version=text) for text in HOSTILE[:5]}
    leave(tmp_path / "demo", sites=sites, failure=HOSTILE[1], name=HOSTILE[2])
    shown = status("demo", folder=tmp_path)
    assert shown.returncode == RUNNING, shown.stderr
    assert "[red]on fire[/]" in shown.stdout
    assert all(line.isprintable() for line in shown.stdout.split("\n"))
    assert len([line for line in shown.stdout.split("\n") if line.rstrip().endswith("never")]) == len(sites)


def test_help_and_status_wait_for_no_heavy_import(tmp_path: Path) -> None:
    leave(tmp_path / "demo")
    for arguments in (["--help"], ["status", "demo"]):
        command = [sys.executable, "-X", "importtime", "-m", "fedpeft.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
        names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "fedpeft.cli.status" in names
        assert not names & {"torch", "numpy", "transformers", "grpc", "prometheus_client", "fedpeft.federation"}


def test_a_table_of_many_sites_says_how_many_it_leaves_out() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(sites_table({f"site-{i:03}": SitePicture() for i in range(100)}))
    assert console.file.getvalue().count("site-") == 40  # type: ignore[attr-defined]
    assert "and 60 more" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (100, "100 s"), (600, "10 min"), (4 * 3600, "4 h"), (8 * 86400, "8 d")]
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert ago(time.time() - seconds) == f"{text} ago"
    assert ago(None) == "never"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(server_view, "out", Console(file=stream, width=120))
    monkeypatch.setattr("fedpeft.cli.view.out", server_view.out)
    return stream


def test_a_server_prints_lines_where_there_is_no_terminal(written: io.StringIO, tmp_path: Path) -> None:
    view = ServerView(Status(tmp_path, "demo", 2).picture)
    with view.live():
        for event in story():
            view.watch(event)
            if event.kind is Happening.COMMITTED:
                view.add(event.facts)
    lines = written.getvalue().splitlines()
    assert [line.split()[:4] for line in lines if line.startswith("round")] == [
        ["round", "1", "loss", "1.000"],
        ["round", "2", "loss", "0.500"],
    ]
    for expected in ("ann  connected", "cat  refused  bad payload: norm", "cat  alarm  two", "cat  disconnected  the"):
        assert any(line.startswith(expected) for line in lines), expected


def test_hostile_events_print_as_text(written: io.StringIO, tmp_path: Path) -> None:
    view = ServerView(Status(tmp_path, "demo", 2).picture)
    for event in hostile():
        view.watch(event)
    assert all(line.isprintable() for line in written.getvalue().split("\n"))
    assert "[red]on fire[/]" in written.getvalue()


def test_on_a_terminal_the_sites_stand_above_the_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream, known = io.StringIO(), Status(tmp_path, "demo", 2, SITES)
    monkeypatch.setattr(server_view, "out", Console(file=stream, width=120, height=60, force_terminal=True))
    view = ServerView(known.picture)
    with view.live():
        for event in [*story(), Event(Happening.CONNECTED, "[red]mallory\x1b[2J")]:
            known(event)
            view.watch(event)
            if event.kind is Happening.COMMITTED:
                view.add(row(event.round))
    drawn = stream.getvalue()
    last = drawn[drawn.rindex("demo: round 2 of 2") :]
    assert last.index("last seen") < last.index("ann") < last.index("cat") < last.index("accuracy")
    assert "[red]mallory\\x1b[2J" in last
    assert "\x1b[2J" not in drawn
    assert "two different replies" in drawn
