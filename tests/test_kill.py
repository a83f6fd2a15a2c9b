"""kill -9 at every durable step of a real process, then resume: the adapter has the same bits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpeft.config import Experiment
from fedpeft.simulation import simulate
from tests import tiny

FILES = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")


def in_a_child(work: Callable[[], None]) -> int:
    """Exit status of a forked process that does the work: negative is the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_durable_step(number: int, then: Callable[[], None]) -> list[int]:
    """Call `then` just before the process makes something durable for the `number`-th time; counts the times."""
    count = [0]

    def counted(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                then()
            return genuine(*args)

        return step

    os.fsync = counted(os.fsync)  # type: ignore[assignment]
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    return count


def experiment(folder: Path) -> Experiment:
    return Experiment.model_validate(tiny.experiment(folder, sites=2, rounds=2))


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_durable_steps_and_resumed(tmp_path: Path, every: int) -> None:
    chosen = experiment(tmp_path)
    plain = tmp_path / "plain"
    steps = tmp_path / "steps"

    def counting() -> None:
        count = at_durable_step(0, lambda: None)
        simulate(chosen, plain)
        steps.write_text(str(count[0]))

    assert in_a_child(counting) == 0
    total = int(steps.read_text())
    assert total > 60
    wanted = [(plain / name).read_bytes() for name in FILES]
    for number in range(1, total + 1, every):
        folder = tmp_path / f"killed-{number}"

        def killed(folder: Path = folder, number: int = number) -> None:
            at_durable_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            simulate(chosen, folder)

        def resumed(folder: Path = folder) -> None:
            simulate(chosen, folder)

        assert in_a_child(killed) == -signal.SIGKILL
        assert in_a_child(resumed) == 0, f"cannot resume after step {number}"
        assert [(folder / name).read_bytes() for name in FILES] == wanted, f"other bits after step {number}"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def fedpeft(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedpeft.cli", "simulate", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_the_command_is_killed_in_the_middle_and_resumed(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path, rounds=8)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    simulate(Experiment.model_validate(raw), tmp_path / "plain")
    running = fedpeft("tiny.yaml", folder=tmp_path)
    log = tmp_path / "runs" / "tiny" / "journal" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b'"kind":"COMMIT"') >= 3):
        assert running.poll() is None, running.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.001)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    running.communicate()
    assert not (tmp_path / "runs" / "tiny" / "adapter").exists()
    resumed = fedpeft("--resume", "tiny", folder=tmp_path)
    assert resumed.wait(120) == 0, resumed.communicate()[1].decode()
    resumed.communicate()
    for name in FILES:
        assert (tmp_path / "runs" / "tiny" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.slow
def test_killed_at_random_instants_again_and_again(tmp_path: Path) -> None:
    chosen = Experiment.model_validate(tiny.experiment(tmp_path, rounds=30, cohort=2))
    simulate(chosen, tmp_path / "plain")
    killed = 0
    for attempt in range(200):
        pid = os.fork()
        if pid == 0:
            simulate(chosen, tmp_path / "killed")
            os._exit(0)
        time.sleep(0.35 + 0.013 * (attempt % 40))
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        killed += 1
    assert killed >= 3
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
