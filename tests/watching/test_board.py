"""Event files, read back as TensorBoard reads them."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedpeft.errors import ConfigError
from fedpeft.federation import Event, Happening
from fedpeft.watching.board import Board
from fedpeft.watching.guard import Guarded
from tests.watching.disk import full_at
from tests.watching.story import hostile, row, story


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_has_its_curves(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    for event in story():
        board(event)
    read = curves(tmp_path / "board")  # without closing: each round is on disk when it is committed
    board.close()
    assert read["loss"] == [(1, 1.0), (2, 0.5)]
    assert read["accuracy"] == [(1, 0.25), (2, 0.5)]
    assert read["up_bytes"] == [(1, 300.0), (2, 300.0)]
    assert read["seconds"] == [(1, 7.0), (2, 7.0)]
    assert read["sites/ann/loss"] == [(1, 1.5), (2, 1.5)]
    assert read["sites/bob/weight"] == [(1, 20.0), (2, 20.0)]
    assert {"train_loss", "learning_rate", "down_bytes"} <= read.keys()
    assert not any("cat" in tag for tag in read)


def test_a_resumed_run_writes_no_round_twice_and_leaves_none_out(tmp_path: Path) -> None:
    first = Board(tmp_path)
    first(Event(Happening.COMMITTED, round=1, facts=row(1)))
    first.close()
    second = Board(tmp_path)
    second.recall([row(1), row(2)])  # round 2 was committed, then the process was killed
    for number in (1, 2, 3):
        second(Event(Happening.COMMITTED, round=number, facts=row(number)))
    second.close()
    Board(tmp_path).close()
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_loss_of_another_round_is_not_taken_for_this_one(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board(Event(Happening.COUNTED, "ann", 1, {"loss": 9.0}))
    board(Event(Happening.COMMITTED, round=2, facts=row(2, accuracy=None, loss=float("nan"))))
    board.close()
    assert curves(tmp_path).keys() & {"sites/ann/loss", "accuracy", "loss"} == set()


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_file_that_a_kill_cut_short_is_gone_on_from(tmp_path: Path, cut: int) -> None:
    first = Board(tmp_path)
    for number in (1, 2):
        first(Event(Happening.COMMITTED, round=number, facts=row(number)))
    first.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    second = Board(tmp_path)
    second.recall([row(1), row(2)])
    second.close()
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]


def test_a_record_that_a_full_disk_cut_short_spoils_no_later_one(tmp_path: Path) -> None:
    board, said = Board(tmp_path), list[str]()
    watch = Guarded(board, said.append)
    watch(Event(Happening.COMMITTED, round=1, facts=row(1)))
    (path,) = tmp_path.iterdir()
    with full_at(path.stat().st_size + 50):
        watch(Event(Happening.COMMITTED, round=2, facts=row(2)))
    assert len(said) == 1
    watch(Event(Happening.COMMITTED, round=3, facts=row(3)))
    board.close()
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 3]


def test_bytes_that_are_no_events_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.0000000001.host.1.0").write_bytes(b"\xff" * 100)
    board = Board(tmp_path)
    board(Event(Happening.COMMITTED, round=1, facts=row(1)))
    board.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_hostile_texts_reach_no_curve(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for event in hostile():
        board(event)
    board.close()
    assert {tag.split("/")[1] for tag in curves(tmp_path) if "/" in tag} == {"ann", "bob"}


def test_a_folder_that_is_gone_is_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    folder, said = tmp_path / "board", list[str]()
    watch = Guarded(board := Board(folder), said.append)
    folder.rmdir()
    watch(Event(Happening.COMMITTED, round=1, facts=row(1)))
    watch(Event(Happening.COMMITTED, round=2, facts=row(2)))
    folder.mkdir()
    watch(Event(Happening.COMMITTED, round=3, facts=row(3)))
    board.close()
    assert len(said) == 1
    assert curves(folder)["loss"] == [(3, pytest.approx(1 / 3))]


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedpeft\[tensorboard\]'"):
        Board(tmp_path)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot hold event files"):
        Board(tmp_path / "file")
