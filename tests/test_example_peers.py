"""The example of peers, whole, on a tiny model: real processes, real TLS, a real SIGKILL, a line that is cut."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from fedpeft.config.peer import load_peer, load_run
from tests import tiny

ROOT = Path(__file__).parents[1]
HERE = ROOT / "examples" / "peers"


def test_the_example_s_files_are_what_the_program_takes() -> None:
    assert load_run(HERE / "run.yaml", begun=False).mode == "scalar"
    assert load_peer(HERE / "peer.yaml").every_s == 0.5


def test_four_peers_end_with_one_adapter_whatever_befalls_them(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path)
    run = {
        "name": "tiny",
        "model": {"name": raw["model"]["name"], "max_length": 16},  # type: ignore[index]
        "peft": raw["peft"],
        "labels": sorted(tiny.COLOURS),
        "epochs": 8,
        "segments": 2,
        "patience_s": 12,
        "scalar": {"directions": 64, "per_segment": 16, "batch_size": 4, "directions_per_step": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [
        sys.executable, "-m", "examples.peers", "--folder", tmp_path / "peers", "--run", tmp_path / "run.yaml",
        "--source", f"LocalFile({str(tmp_path / 'colours.jsonl')!r}, label='label')",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("peer-") and len(line.split()) == 6]
    assert [row[:2] for row in rows] == [[f"peer-{i}", "8"] for i in range(1, 5)]
    assert len({row[-1] for row in rows}) == 1 and len(rows[0][-1]) == 64
    for name in ("peer-1", "peer-4"):
        saved = (tmp_path / "peers" / name / "state" / "adapter.sha256").read_text().strip()
        assert saved == rows[0][-1]
