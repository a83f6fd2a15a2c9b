"""What the README shows is what the code takes."""

import re
from pathlib import Path

import pytest
import yaml

from fedpeft import simulation
from fedpeft.config import Experiment
from fedpeft.errors import Defect

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(kind: str) -> str:
    found = re.findall(rf"```{kind}\n(.*?)```", README, re.S)
    assert len(found) == 1
    return found[0]


def test_its_yaml_is_an_experiment() -> None:
    plan = Experiment.model_validate(yaml.safe_load(block("yaml"))).plan()
    assert plan.rounds == 20


def test_its_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"round": 1, "accuracy": 0.5, "up_bytes": 1, "up_bytes_fp32": 32}]
    monkeypatch.setattr(simulation, "simulate", lambda experiment, folder: rows)
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out == "1 0.5 1 32\n"


def test_the_wire_format_names_every_defect() -> None:
    page = (ROOT / "docs" / "wire-format.md").read_text()
    assert not [defect.value for defect in Defect if f"`{defect.value}`" not in page]
