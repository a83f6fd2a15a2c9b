"""Rows of Flower's own way for the same bytes: a real SuperLink, real SuperNodes, one array in each reply."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft import keys

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parents[2]
TIMEOUT_S = 240.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "UV_OFFLINE": "1",
}
PROJECT = """
[project]
name = "bench"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"
[tool.flwr.app.config]
"""
APP = """
from simulations.bench_grpc import flower_app
client = flower_app.client
server = flower_app.server
"""
CONNECTION = """
[superlink]
default = "bench"
[superlink.bench]
address = "127.0.0.1:{port}"
{trust}
"""


def installed() -> bool:
    """Whether Flower is here."""
    return importlib.util.find_spec("flwr") is not None


def rows(sites: int, sizes_mb: Sequence[int], tls: bool) -> list[dict[str, Any]]:
    """A row for each size, by as many SuperNodes.

    Raises:
        RuntimeError: one of Flower's processes failed; its log is told.
    """
    with tempfile.TemporaryDirectory(prefix="bench-flower-") as name:
        folder = Path(name)
        with running(folder) as start:
            return measured(folder, start, sites, sizes_mb, tls)


@contextmanager
def running(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes, each with its log and a session of its own; in the end all their families are ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: object) -> subprocess.Popen[bytes]:
        (folder / name).mkdir(exist_ok=True)
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder / "app",
                env=os.environ | QUIET | {"FLWR_HOME": str(folder / name), "PYTHONPATH": str(ROOT),
                                          "PATH": f"{BIN}:{os.environ['PATH']}"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def measured(
    folder: Path, start: Callable[..., subprocess.Popen[bytes]], sites: int, sizes_mb: Sequence[int], tls: bool
) -> list[dict[str, Any]]:
    """What the ServerApp wrote, once it has a row for each size."""
    port, out = free_port(), folder / "rows.jsonl"
    authority = folder / "keys" / "ca.crt"
    if tls:
        keys.init(folder / "keys", ["127.0.0.1"])
        shown: tuple[object, ...] = ("--ssl-ca-certfile", authority, "--ssl-certfile", folder / "keys" / "server.crt",
                 "--ssl-keyfile", folder / "keys" / "server.key")  # fmt: skip
        trusting: tuple[object, ...] = ("--root-certificates", authority)
        trust = f'root-certificates = "{authority}"'
    else:
        shown, trusting, trust = ("--insecure",), ("--insecure",), "insecure = true"
    (folder / "app").mkdir()
    link = start("link", BIN / "flower-superlink", "--host", "127.0.0.1", "--port", port, *shown,
                 "--disable-runtime-dependency-installation")  # fmt: skip
    wait_for(lambda: answers(port), folder, link)
    nodes = [
        start(f"node{i}", BIN / "flower-supernode", "--superlink", f"127.0.0.1:{port}", *trusting,
              "--host", "127.0.0.1", "--port", free_port())
        for i in range(sites)
    ]  # fmt: skip
    config = {
        "transport": f"Flower 1.41, {'TLS' if tls else 'plain'}",
        "nodes": sites,
        "link": link.pid,
        "sites": json.dumps([node.pid for node in nodes]),
        "sizes": json.dumps(list(sizes_mb)),
        "out": str(out),
    }
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in config.items())
    (folder / "app" / "pyproject.toml").write_text(PROJECT + "".join(lines))
    (folder / "app" / "app.py").write_text(APP)
    (folder / "user").mkdir()
    (folder / "user" / "config.toml").write_text(CONNECTION.format(port=port, trust=trust))
    user = start("user", BIN / "flwr", "run", ".", "bench")
    wait_for(lambda: user.poll() is not None, folder, link)
    wait_for(lambda: out.exists() and len(out.read_text().splitlines()) == len(sizes_mb), folder, link, user)
    return [json.loads(line) for line in out.read_text().splitlines()]


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(done: Callable[[], bool], folder: Path, *needed: subprocess.Popen[bytes]) -> None:
    """Look now and then whether it is done.

    Raises:
        RuntimeError: it takes too long, or a process that it needs has failed.
    """
    until = time.monotonic() + TIMEOUT_S
    while not done():
        if time.monotonic() > until or any(process.poll() for process in needed):
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"Flower does not answer:\n{logs}")
        time.sleep(0.2)
