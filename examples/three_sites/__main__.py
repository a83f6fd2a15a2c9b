"""Make keys, start a server and three sites, kill one on the way: `python -m examples.three_sites`."""

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
SITES = ("site-1", "site-2", "site-3")
Answer = TypeVar("Answer")
ADAPTER = Path("adapter") / "adapter_model.safetensors"


def main() -> int:
    """Run the whole story; returns 0 where both adapters are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="for keys, states and runs; a new one in runs/ if left out")
    parser.add_argument("--experiment", type=Path, default=HERE / "experiment.yaml")
    parser.add_argument("--site", type=Path, default=HERE / "site.yaml")
    parser.add_argument(
        "--source", help="the source in both, where it is another", default="StdlibDocs(modules=8, per_module=40)"
    )
    parser.add_argument("--partition", default="Dirichlet(alpha=0.5)", help="of the experiment")
    options = parser.parse_args()
    with ExitStack() as stack:
        Path("runs").mkdir(exist_ok=True)
        folder = (options.folder or Path(tempfile.mkdtemp(prefix="three-sites-", dir="runs"))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_keys(folder)
        deployed = deploy(stack, folder, options)
        print("\nthe same experiment in one process, over memory:")
        fedpeft(folder, "simulate", options.experiment.resolve(), "--runs", "simulated")
        simulated = next((folder / "simulated").iterdir())
        digests = [hashlib.sha256((run / ADAPTER).read_bytes()).hexdigest() for run in (deployed, simulated)]
        print(f"\nadapter over gRPC    {digests[0]}\nadapter over memory  {digests[1]}")
        print(f"report               {deployed / 'report.html'}")
        return int(digests[0] != digests[1])


def make_keys(folder: Path) -> None:
    """What the coordinator and the sites do once; only requests and certificates travel."""
    fedpeft(folder, "keys", "init", "--host", "localhost", "--keys", "server/keys")
    for site in SITES:
        fedpeft(folder, "keys", "site", site, "--keys", f"{site}/keys")
        shutil.copy(folder / site / "keys" / f"{site}.csr", folder / "server")
        fedpeft(folder, "keys", "sign", f"server/{site}.csr", "--keys", "server/keys")
        fedpeft(
            folder, "keys", "install", f"server/keys/roster/{site}.crt", "server/keys/ca.crt", "--keys", f"{site}/keys"
        )


def deploy(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Path:
    """Server and sites from start to end, one site killed on the way; returns the run's folder."""
    port = free_port()

    def site(number: int) -> subprocess.Popen[bytes]:
        name = SITES[number - 1]
        share = f"Share({options.source}, {options.partition}, {number}, {len(SITES)})"
        changes = (f"server=localhost:{port}", f"keys={name}/keys", f"folder={name}/state", f"data.source={share}")
        sets = [word for change in changes for word in ("--set", change)]
        return stack.enter_context(started(folder, name, "site", "--config", options.site.resolve(), "--once", *sets))

    server = stack.enter_context(
        started(
            folder, "server", "server", options.experiment.resolve(), "--keys", "server/keys",
            "--listen", f"localhost:{port}", "--runs", "runs", "--metrics", "localhost:0",
        )
    )  # fmt: skip
    sites = [site(number) for number in (1, 2, 3)]
    (status,) = wait(lambda: list((folder / "runs").glob("*/status.json")), server, *sites)
    run = status.parent
    wait(lambda: rounds(run), server, *sites)
    sites[1].send_signal(signal.SIGKILL)
    print("\nkilled site-2 with SIGKILL; it is started again\n", flush=True)
    sites[1].wait()
    sites[1] = site(2)
    codes = [process.wait() for process in (server, *sites)]
    if any(codes):
        raise SystemExit(f"exit codes of the server and the sites: {codes}; the logs are in {folder}")
    return run


def fedpeft(folder: Path, *words: object) -> None:
    """Run a command to its end."""
    command = [sys.executable, "-m", "fedpeft.cli", *map(str, words)]
    print("$ fedpeft", *words, flush=True)
    subprocess.run(command, cwd=folder, check=True, env=environment())


@contextmanager
def started(folder: Path, name: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, its output in NAME.log; the server's is shown too."""
    print("$ fedpeft", *words, "&", flush=True)
    command = [sys.executable, "-m", "fedpeft.cli", *map(str, words)]
    shown = None if name == "server" else (folder / f"{name}.log").open("ab")
    process = subprocess.Popen(command, cwd=folder, stdout=shown, stderr=shown, env=environment())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        if shown:
            shown.close()


def environment() -> dict[str, str]:
    """The parent's, and where this package is, for a folder elsewhere."""
    places = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rounds(run: Path) -> int:
    """How many rounds of a run are committed."""
    path = run / "metrics.jsonl"
    return len([json.loads(line) for line in path.read_text().splitlines()]) if path.exists() else 0


def wait(for_what: Callable[[], Answer], *processes: subprocess.Popen[bytes]) -> Answer:
    """The first true answer; ends the program where a process ended before."""
    while not (answer := for_what()):
        if any(process.poll() not in (None, 0) for process in processes):
            raise SystemExit("a process failed; see above and the logs beside it")
        time.sleep(0.05)
    return answer


if __name__ == "__main__":
    sys.exit(main())
