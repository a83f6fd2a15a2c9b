"""A run's folder is read whole, or the damaged file is named."""

import json
import re

import pytest

from fedpeft import report
from fedpeft.errors import JournalError
from fedpeft.report.run import read
from tests.report.folder import make


@pytest.mark.parametrize("name", ["metrics.jsonl", "facts.json", "config.yaml"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff\xfe", b'{"round": "x", "name": 3}', b"[" * 999])
def test_damaged_files_are_named(tmp_path, name, content):
    folder = make(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(JournalError, match=re.escape(str(folder / name))):
        report.write(folder)
    assert not (folder / "report.html").exists()


def test_damaged_row_is_named(tmp_path):
    folder = make(tmp_path)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*rows[:2], rows[2].replace('"up_bytes": ', '"up_bytes": -')]))
    with pytest.raises(JournalError, match=r"line 3: up_bytes: Input should be greater than or equal to 0"):
        read(folder)


def test_scores_that_are_not_finite_are_not_measured(tmp_path):
    run = read(make(tmp_path, loss=float("nan"), train_loss=float("inf")))
    assert run.measured("accuracy", "loss", "train_loss") == ["accuracy"]
    assert run.scores("loss") == {0: 3.1, 1: None, 2: None, 3: None, 4: None}


def test_a_site_took_part_if_a_round_counted_it(tmp_path):
    folder = make(tmp_path, sites=2)
    facts = json.loads((folder / "facts.json").read_text())
    facts["sites"]["idle"] = {"examples": 1, "labels": 1}
    (folder / "facts.json").write_text(json.dumps(facts))
    run = read(folder)
    assert run.active == 2 and not run.sites["idle"]
    assert [traffic.up_bytes for traffic in run.sites["site-1"]] == [101, 102, 103, 104]


def test_time_beside_the_stages_is_never_negative(tmp_path):
    assert read(make(tmp_path, train_s=50.0)).total("other_s") == 0
