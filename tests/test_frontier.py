"""What `simulations.frontier` makes of finished runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft import codecs
from fedpeft.errors import DataError
from simulations.frontier import sweep as sweeping
from simulations.frontier.methods import METHODS
from simulations.frontier.outcome import Work
from simulations.frontier.picture import draw
from simulations.frontier.shakespeare import Shakespeare
from simulations.frontier.summary import compared, summary
from simulations.frontier.tasks import TASKS


def row(method: str, seed: int, accuracy: float, up: float) -> dict[str, Any]:
    return {
        "key": f"{method}{seed}", "task": "clinc150", "method": method, "family": method, "seed": seed,
        "accuracy": accuracy, "loss": 1.0, "up_bytes_per_site": up, "down_bytes_per_site": 5.0,
        "bytes_per_site": up + 5, "up_ratio_to_fp32": up / 3200, "down_ratio_to_fp32": 1.0,
    }  # fmt: skip


ROWS = [
    row("fp32", 0, 0.80, 3200),
    row("fp32", 1, 0.90, 3200),
    row("small", 0, 0.79, 100),
    row("small", 1, 0.88, 100),
    row("poor", 0, 0.70, 100),
    row("poor", 1, 0.70, 100),
    {k: v for k, v in row("lost", 0, 0.0, 0).items() if k not in ("accuracy", "loss")} | {"failure": "diverged"},
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path))
    yield tmp_path


def test_every_method_is_a_codec_of_its_own_name() -> None:
    assert len({method.name for method in METHODS}) == len(METHODS)
    for method in METHODS:
        codecs.parse(method.codec)
        assert isinstance(codecs.parse(method.broadcast), codecs.Codec)


def test_a_run_is_known_by_what_decides_it_and_not_by_where_the_data_lies(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [Work(task, method, seed, False) for task in TASKS for method in (None, *METHODS) for seed in (0, 1)]
    keys = [work.key() for work in works]
    assert len(set(keys)) == len(keys)
    monkeypatch.setenv("FEDPEFT_DATA", str(data / "elsewhere"))
    assert [work.key() for work in works] == keys


def test_a_summary_pairs_seeds_with_fp32() -> None:
    lines = {line["method"]: line for line in summary(compared(ROWS), "accuracy")}
    assert lines["fp32"]["lost"] == 0
    assert lines["small"]["lost"] == pytest.approx(1.5)
    assert (lines["small"]["least"], lines["small"]["most"], lines["small"]["seeds"]) == (0.79, 0.88, 2)
    assert lines["small"]["up_smaller"] == pytest.approx(32)
    assert lines["poor"]["up_ratio_to_fp32"] == pytest.approx(100 / 3200)
    assert [lines[name]["frontier"] for name in ("fp32", "small", "poor", "lost")] == ["*", "*", "", "failed"]


def test_rows_are_joined_with_the_centralised_run_of_their_seed() -> None:
    joined = compared([*ROWS, row("central", 1, 0.95, 0)])
    assert [r["central_accuracy"] for r in joined] == [None, 0.95, None, 0.95, None, 0.95, None]


def test_a_sweep_takes_up_what_a_crash_left(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    works = [Work("clinc150", None, seed, True) for seed in range(3)]
    rows = sweeping.rows_of(works[:2], path, 2, _outcome)
    assert sorted(row["seed"] for row in rows.values()) == [0, 1]
    path.write_bytes(path.read_bytes()[:-9])
    assert len(sweeping.cached(path)) == 1
    assert sweeping.rows_of(works, path, 1, _outcome, only_show=True) == sweeping.cached(path)
    capsys.readouterr()
    assert {row["seed"] for row in sweeping.rows_of([*works, works[0]], path, 1, _outcome).values()} == {0, 1, 2}
    assert "2/2 clinc150, central, seed" in capsys.readouterr().err
    assert len(path.read_text().splitlines()) == 4
    assert sweeping.cached(path).keys() == {work.key() for work in works}


def _outcome(work: Work) -> dict[str, Any]:
    return {"key": work.key(), "seed": work.seed, "accuracy": 0.5, "loss": 1.0, "wall_s": 0.0}


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_plot_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot{suffix}"
    draw({"clinc150": ("accuracy", summary(compared(ROWS), "accuracy"))}, path)
    assert path.read_bytes()[:4] in (b"<?xm", b"\x89PNG")


def test_shakespeare_is_cut_by_speaker_and_its_last_lines_are_held_out(data: Path) -> None:
    folder = data / "tinyshakespeare"
    folder.mkdir()
    (folder / "speakers.json").write_text(json.dumps({"A": {"chars": 90}, "B": {"chars": 20}, "C": {"chars": 10}}))
    lines = [f"line {i}" for i in range(10)]
    (folder / "input.txt").write_text("A:\n" + "\n".join(lines) + "\n\nB:\nwords of B\n\nC:\nnothing\n\nA:\nlast\n")
    corpus = Shakespeare(speakers=2, characters=7, held_out=0.2).load(0)
    assert [e.text for e in corpus.train if e.group == "A"] == [f"line {i}\n" for i in range(9)]
    assert [e.text for e in corpus.test if e.group == "A"] == ["line 9\n", "last\n"]
    assert {e.group for e in corpus.train} == {"A", "B"}


def test_shakespeare_says_what_is_missing(data: Path) -> None:
    with pytest.raises(DataError, match="FEDPEFT_DATA must hold tinyshakespeare/"):
        Shakespeare().load(0)
