"""Processes of a test's own: started, looked at, ended by their ids."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent
_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "UV_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Processes:
    """What a test started, each with a log; ended in reverse order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: object) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [str(part) for part in command],
                cwd=self._folder,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self, name: str) -> dict[str, str]:
        home = self._folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        paths = {"FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
        return os.environ | _OFFLINE | paths

    def log(self, name: str) -> str:
        assert self._running[name].poll() is None, (self._folder / f"{name}.log").read_text()[-3000:]
        return (self._folder / f"{name}.log").read_text()

    def end(self) -> dict[str, int]:
        codes = {}
        for name, process in reversed(self._running.items()):
            process.terminate()
            try:
                codes[name] = process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                codes[name] = process.wait(10)
        self._running.clear()
        return codes


def wait_for(done: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
