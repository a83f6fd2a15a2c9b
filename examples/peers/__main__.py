"""Four peers, one of them late, one killed, one cut off, and one adapter: `python -m examples.peers`."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from examples.peers.line import Line

HERE = Path(__file__).parent
PHRASES = str(HERE.resolve() / "phrases.jsonl")
NAMES = ("peer-1", "peer-2", "peer-3", "peer-4")
Answer = TypeVar("Answer")


def main() -> int:
    """Play the whole story; returns 0 where all four adapters are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="for all files; a new one in runs/ if left out")
    parser.add_argument("--run", type=Path, default=HERE / "run.yaml", help="the description of the run")
    parser.add_argument("--source", help="whose shares the four have", default=f"LocalFile({PHRASES!r}, label='label')")
    options = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="peers-", dir="runs"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        return Story(folder, options.run.resolve(), options.source, stack).play()


@dataclass
class Peer:
    """One of the four.

    Args:
        name: of the peer and its folder.
        port: where it listens.
        lines: in front of its port, and for what it dials; only who is going to be cut off has them.
        process: while it runs.
    """

    name: str
    port: int
    lines: tuple[Line, ...] = ()
    process: subprocess.Popen[bytes] | None = None


class Story:
    """The run from its first key to its last epoch.

    Args:
        folder: for all files.
        run: the description to begin with.
        source: whose shares the peers have.
        stack: of what is ended with the program.
    """

    def __init__(self, folder: Path, run: Path, source: str, stack: ExitStack) -> None:
        self._folder, self._run, self._source, self._stack = folder, run, source, stack
        os.chdir(folder)
        self._peers = {name: Peer(name, free_port()) for name in NAMES}
        third = self._peers["peer-3"]
        third.lines = tuple(stack.enter_context(Line(to)) for to in (third.port, None))

    def play(self) -> int:
        """Everything."""
        fedpeft("peer", "init", "organiser", "--run", self._run)
        for peer in self._peers.values():
            port = peer.lines[0].port if peer.lines else peer.port
            shutil.copy("organiser/run.yaml", "run.yaml")
            fedpeft("peer", "join", "run.yaml", peer.name, "--address", f"127.0.0.1:{port}", "--keys", peer.name)
            self._describe(peer)
        self._admit(*NAMES[:3])
        for name in NAMES[:3]:
            self._start(name)
        self._until(lambda: self._epochs("peer-1") >= 1)
        self._tell("peer-4 joins late: it is admitted, peer-1 alone is given the new roster")
        self._admit("peer-4", told=("peer-1", "peer-4"))
        self._start("peer-4")
        self._until(lambda: self._epochs("peer-4") >= 1)
        self._tell("peer-2 is killed with SIGKILL and started again; peer-3 is cut off meanwhile")
        self._kill("peer-2")
        for line in self._peers["peer-3"].lines:
            line.cut()
        self._start("peer-2")
        cut_at = self._epochs("peer-3")
        self._until(lambda: self._epochs("peer-1") > cut_at or self._status("peer-1")["finished"])
        self._tell(f"the others have closed epoch {cut_at + 1} without peer-3, which is let in again")
        for line in self._peers["peer-3"].lines:
            line.heal()
        self._until(lambda: all(self._status(name).get("adapter") for name in NAMES))
        return self._end()

    def _describe(self, peer: Peer) -> None:
        raw = yaml.safe_load((HERE / "peer.yaml").read_text())
        number = NAMES.index(peer.name) + 1
        raw |= {
            "keys": peer.name,
            "folder": f"{peer.name}/state",
            "roster": f"{peer.name}/roster.json",
            "listen": f"127.0.0.1:{peer.port}",
            "address": f"127.0.0.1:{peer.lines[0].port if peer.lines else peer.port}",
            "data": {"source": f"Share({self._source}, IID(), {number}, {len(NAMES)})"},
        }
        Path(peer.name, "peer.yaml").write_text(yaml.safe_dump(raw))

    def _admit(self, *names: str, told: Sequence[str] = ()) -> None:
        fedpeft("peer", "admit", "organiser", *(f"{name}/{name}.card" for name in names))
        for name in told or names:
            shutil.copy("organiser/roster.json", f"{name}/roster.tmp")
            Path(name, "roster.tmp").replace(Path(name, "roster.json"))

    def _start(self, name: str) -> None:
        peer = self._peers[name]
        words = ["peer", "run", "--config", f"{name}/peer.yaml"]
        print("$ fedpeft", *words, "&", flush=True)
        command = [sys.executable, "-m", "fedpeft.cli", *words]
        proxy = f"http://127.0.0.1:{peer.lines[1].port}" if peer.lines else None
        with Path(f"{name}.log").open("ab") as log:
            peer.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(proxy))
        self._stack.callback(self._stop, peer)

    def _kill(self, name: str) -> None:
        peer = self._peers[name]
        if peer.process is not None:
            peer.process.kill()
            peer.process.wait()
        peer.process = None

    def _stop(self, peer: Peer) -> int:
        if peer.process is None:
            return 0
        peer.process.terminate()
        code, peer.process = peer.process.wait(60), None
        return code

    def _until(self, true: Callable[[], Answer]) -> Answer:
        """The first true answer; ends the program where a process ended before."""
        while not (answer := true()):
            for peer in self._peers.values():
                if peer.process is not None and peer.process.poll() is not None:
                    raise SystemExit(f"{peer.name} ended:\n{Path(peer.name + '.log').read_text()[-3000:]}")
            time.sleep(0.05)
        return answer

    def _status(self, name: str) -> dict[str, Any]:
        path = Path(name, "state", "status.json")
        status: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return status

    def _epochs(self, name: str) -> int:
        return int(self._status(name).get("round", 0))

    def _tell(self, text: str) -> None:
        print(f"\n{text}\n", flush=True)

    def _end(self) -> int:
        """Stop all, and print how they ended; whether they did not end alike."""
        statuses = {name: self._status(name) for name in NAMES}
        codes = [self._stop(peer) for peer in self._peers.values()]
        print(f"\n{'peer':8}{'epochs':>8}{'kB out':>9}{'kB in':>9}{'loss':>8}  adapter")
        for name, status in statuses.items():
            sent, received = (status[way] / 1000 for way in ("sent_bytes", "received_bytes"))
            loss = status["loss"] if status["loss"] is not None else float("nan")
            print(f"{name:8}{status['round']:8}{sent:9.1f}{received:9.1f}{loss:8.3f}  {status['adapter']}")
        same = len({status["adapter"] for status in statuses.values()}) == 1
        print("one adapter" if same else "the adapters differ", "-", self._folder)
        return int(not same or any(codes))


def fedpeft(*words: object) -> None:
    """Run a command here, to its end."""
    from fedpeft.cli import app

    print("$ fedpeft", *words, flush=True)
    if code := app([str(word) for word in words], standalone_mode=False):
        raise SystemExit(code)


def environment(proxy: str | None) -> dict[str, str]:
    """The parent's, where this package is, and the way out for a peer that is going to be cut off."""
    places = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    ours = {"PYTHONPATH": os.pathsep.join(places), "GRPC_VERBOSITY": "NONE"}
    return kept | ours | ({"grpc_proxy": proxy} if proxy else {})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
