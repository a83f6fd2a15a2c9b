"""What the files of a run say while its processes write them: who is in the midst of what, and which replies exist."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

import safetensors.torch

from fedpeft.durable import read_sealed
from tests.chaos.deployment import Deployment

_SMALL = 1 << 16  # a task of so many bytes does not go through a spool


class _Tail:
    """The whole lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return whole.split(b"\n") if whole else []


class Sight:
    """Reads the journal, the server's log and the sites' states; `look` brings it up to date.

    Args:
        deployment: whose files.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._folder, run = deployment.folder, deployment.run
        self._journal, self._log = _Tail(run / "journal" / "log.jsonl"), _Tail(run / "server.log.jsonl")
        self._states: dict[str, int] = {}
        self._connected: dict[str, bool] = {}
        self.records: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.replied = dict.fromkeys(deployment.sites, 0)
        self.replies: defaultdict[tuple[str, int], set[str]] = defaultdict(set)

    @property
    def rounds(self) -> int:
        """How many are committed."""
        return len(self.of("COMMIT"))

    def of(self, kind: str, number: int = 0) -> list[dict[str, Any]]:
        """The journal's records of a kind, of one round or of all."""
        return [r for r in self.records if r["kind"] == kind and number in (0, r["round"])]

    def look(self) -> Self:
        """Read what is new; returns itself."""
        self.records += [json.loads(line.partition(b" ")[2]) for line in self._journal.lines()]
        events = [json.loads(line) for line in self._log.lines()]
        self._connected |= {e["node"]: e["event"] == "connected" for e in events if e["event"].endswith("connected")}
        self.events += events
        for site in self.replied:
            path = self._folder / site / "state" / "client.state"
            changed = path.stat().st_mtime_ns if path.exists() else 0
            if changed != self._states.get(site, 0):
                state = safetensors.torch.load(read_sealed(path))
                self._states[site], self.replied[site] = changed, int(state["rounds"][1])
                reply = hashlib.sha256(state["reply"].numpy().tobytes()).hexdigest()
                self.replies[site, self.replied[site]].add(reply)
        return self

    def phase(self, of: str) -> str:
        """What the server or a site is in the midst of, as its files say."""
        last = self.records[-1]["kind"] if self.records else "BEGIN"
        if last in ("BEGIN", "COMMIT", "CLOSE"):
            return "commit" if last == "CLOSE" and of == "server" else "between"
        number = self.rounds + 1
        owing = set(self.replied) - {record["node"] for record in self.of("ACCEPT", number)}
        sending = {site for site in owing if self.replied[site] == number}
        if of == "server":
            return "upload" if sending else "training" if owing and self.of("ASK", number) else "between"
        if of not in owing:
            return "counted"
        return "upload" if of in sending else self._work(of, number)

    def _work(self, site: str, number: int) -> str:
        asked = [record["bytes"][site] for record in self.of("ASK", number) if site in record["bytes"]]
        if not asked or not self._connected.get(site):
            return "away"
        if asked[-1] <= _SMALL:
            return "training"
        files = list((self._folder / site / "state" / "spool").glob("server@*"))
        return "training" if [file for file in files if file.stat().st_size == asked[-1]] else "download"
