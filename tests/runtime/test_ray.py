"""Flower's Ray simulation, by fedpeft's own command and by Flower's (slow)."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedpeft.simulation import simulate
from tests import tiny
from tests.runtime.processes import BIN, Processes, free_port, wait_for

APP = Path(__file__).parents[2] / "examples" / "flower_app"
TOML = """
[superlink]
default = "own"

[superlink.own]
address = "127.0.0.1:{port}"
insecure = true
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the sockets that Ray makes."""
    with tempfile.TemporaryDirectory(prefix="fl") as name:
        yield Path(name)


@pytest.fixture
def processes(folder: Path) -> Iterator[Processes]:
    started = Processes(folder)
    yield started
    started.end()


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [str(BIN / "fedpeft"), *map(str, arguments)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=500, check=False)


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_same_yaml_gives_the_same_adapter_on_ray(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.experiment(folder)))
    simulate(tiny.experiment(folder), folder / "memory")
    done = command(folder, "simulate", "tiny.yaml", "--engine", "flower", "--clients-at-once", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert adapter(folder / "runs" / "tiny") == adapter(folder / "memory")
    assert "round 3" in done.stdout
    assert "deprecat" not in (done.stdout + done.stderr).lower()
    assert len(list((folder / "runs" / "tiny" / "sites").glob("*.state"))) == 3


def test_a_run_that_fails_on_ray_is_said_and_can_be_taken_up(folder: Path) -> None:
    raw = tiny.experiment(folder, training={"local_steps": 2, "schedule": "constant"}, rounds=3)
    simulate(raw, folder / "memory")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw | {"rounds": 1}))
    assert command(folder, "simulate", "tiny.yaml", "--engine", "flower").returncode == 0
    state = folder / "runs" / "tiny" / "sites" / "site-2.state"
    kept = state.read_bytes()
    state.write_bytes(b"damaged")
    failed = command(folder, "simulate", "--resume", "tiny", "--rounds", 3, "--engine", "flower")
    assert failed.returncode == 1
    assert "site-2.state: the content is not what its checksum says" in failed.stderr
    state.write_bytes(kept)
    assert command(folder, "simulate", "--resume", "tiny", "--engine", "flower").returncode == 0
    assert adapter(folder / "runs" / "tiny") == adapter(folder / "memory")


def test_the_example_runs_under_flwr(folder: Path, processes: Processes) -> None:
    port, user = free_port(), processes.environment("user")
    Path(user["FLWR_HOME"], "config.toml").write_text(TOML.format(port=port))
    processes.start("link", BIN / "flower-superlink", "--insecure", "--simulation", "--port", port)
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))

    def flwr(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [str(BIN / "flwr"), *arguments]
        return subprocess.run(line, cwd=folder, env=user, capture_output=True, text=True, timeout=500, check=False)

    wait_for(lambda: flwr("list", "own").returncode == 0)
    started = flwr("run", "app", "own", "--stream", "--run-config", f'folder="{folder / "run"}" rounds=1')
    (run,) = json.loads(flwr("list", "own", "--format", "json").stdout)["runs"]
    assert run["status"] == "finished:completed", started.stdout + processes.log("link")
    (row,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["counted"] == 2
