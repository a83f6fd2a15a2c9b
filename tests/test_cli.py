"""The commands, as a user types them: real processes in an empty folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
import yaml

from fedpeft import simulation
from tests import tiny


def fedpeft(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedpeft.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.experiment(folder, rounds=2)))
    done = fedpeft("simulate", "tiny.yaml", "--set", "training.local_steps=3", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_run_leaves_what_was_promised(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    run = folder / "runs" / "tiny"
    assert {p.name for p in run.iterdir()} >= {"adapter", "metrics.jsonl", "config.yaml", "journal", "report.html"}
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["local_steps"] == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    keys = {"round", "loss", "accuracy", "up_bytes", "down_bytes", "up_bytes_fp32", "down_bytes_fp32"}
    assert all(keys <= row.keys() for row in rows)
    assert "round 2" in printed
    assert "runs/tiny/adapter" in printed


def test_the_adapter_is_loaded_by_peft_and_scores_what_the_run_says(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run = folder / "runs" / "tiny"
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "base", num_labels=len(tiny.COLOURS)
    )
    model = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    labels = json.loads((run / "adapter" / "labels.json").read_text())
    from fedpeft.config import load
    from fedpeft.data import parse_source

    test = parse_source(load(run / "config.yaml").data.source).load(0).test
    with torch.no_grad():
        said = [
            int(model(**tokenizer(e.text, return_tensors="pt", return_token_type_ids=False)).logits.argmax())
            for e in test
        ]
    right = sum(labels[i] == labels[example.label] for i, example in zip(said, test, strict=True))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert right / len(test) == pytest.approx(last["accuracy"])


def test_a_second_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    for expected in ("demo", "demo-2", "demo-3"):
        folder = simulation.new_folder(tmp_path, "demo")
        assert folder.name == expected
        folder.mkdir()


@pytest.mark.parametrize("what", ["runs/tiny", "runs/tiny/adapter"])
def test_inspect_shows_slots_sizes_and_codec(finished: tuple[Path, str], what: str) -> None:
    shown = fedpeft("inspect", what, folder=finished[0])
    assert shown.returncode == 0, shown.stderr
    assert "fingerprint" in shown.stdout
    assert "lora_A" in shown.stdout
    if what == "runs/tiny":
        assert "bits per parameter" in shown.stdout


def test_inspect_shows_a_payload(tmp_path: Path) -> None:
    from fedpeft import codecs, wire
    from fedpeft.space import Slot, Space

    space = Space((Slot("a", (40, 100), "lora_A"),))
    codec, ctx = codecs.Ternary(0.1), codecs.Context(round=3, client=2)
    header = wire.Header(space.fingerprint, b"r" * 16, 3, 2, repr(codec), space.numel)
    payload = wire.pack(header, codec.encode(torch.linspace(-1, 1, space.numel), space, ctx))
    (tmp_path / "update.bin").write_bytes(payload)
    shown = fedpeft("inspect", "update.bin", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"{8 * len(payload) / 4000:.4f}" in shown.stdout
    assert "Ternary(density=0.1" in shown.stdout.replace("\n", "")
    (tmp_path / "update.bin").write_bytes(payload[:-1])
    broken = fedpeft("inspect", "update.bin", folder=tmp_path)
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    assert "error:" in broken.stderr


def test_a_run_is_extended_by_more_rounds(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished[0], tmp_path / "user"))
    done = fedpeft("simulate", "--resume", "tiny", "--rounds", "3", folder=folder)
    assert done.returncode == 0, done.stderr
    assert len((folder / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_failing_site_ends_the_command_with_its_traceback(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path, codec="broken.Broken()")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedpeft.codecs import Identity\n\n"
        "@dataclass(frozen=True)\n"
        "class Broken(Identity):\n"
        "    def encode(self, delta, space, ctx):\n"
        "        raise ZeroDivisionError('on purpose')\n"
    )
    done = fedpeft("simulate", "tiny.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert "site 'site-1' failed" in done.stderr
    assert "broken.py" in done.stderr
    assert "ZeroDivisionError: on purpose" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--set", "roundz=2"], "did you mean 'rounds'"),
        (["simulate", "no.yaml"], "No such file"),
        (["simulate", "--resume", "none"], "is no run"),
        (["simulate", "--resume", "none", "--set", "seed=1"], "keeps its own config"),
        (["inspect", "nowhere"], "expected a run's folder"),
    ],
)
def test_mistakes_are_one_sentence_and_a_status(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = fedpeft(*arguments, folder=tmp_path)
    assert done.returncode in (1, 2)
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_help_is_quick_and_names_the_commands(tmp_path: Path) -> None:
    done = fedpeft("--help", folder=tmp_path)
    assert done.returncode == 0
    assert "simulate" in done.stdout
    assert "inspect" in done.stdout


def test_a_step_that_is_left_out_is_said(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path, rounds=5, server_optimizer="SGD(lr=1e9)")
    (tmp_path / "wild.yaml").write_text(yaml.safe_dump(raw))
    done = fedpeft("simulate", "wild.yaml", "--set", "training.local_steps=2", folder=tmp_path)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "server: the step of round 1 was left out: the adapter went beyond the range of fp16" in said
    assert "3 rounds in a row were left out" in said
