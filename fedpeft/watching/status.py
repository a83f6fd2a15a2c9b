"""Keeps the picture of how a run stands, in memory and in the run's folder."""

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.federation.events import Event, Happening
from fedpeft.federation.transport import NodeId
from fedpeft.watching import picture
from fedpeft.watching.picture import Picture, SitePicture
from fedpeft.watching.words import one_line

_PAUSE_S = 0.5
_HEARTBEAT_S = 5.0
_BUSY = ("downloading", "training", "uploading")
_URGENT = (Happening.WAITING, Happening.COMMITTED, Happening.FAILED, Happening.FINISHED)
_NO_SIGN_OF_LIFE = (Happening.ASKED, Happening.REJECTED)
# Who is told of these has shown a certificate of the roster; any other name gets no line of its own.
_KNOWN = (Happening.CONNECTED, Happening.ASKED, Happening.COUNTED)


class Status:
    """What is known of a run and of its sites; a thread writes it while the context lasts.

    It is written half a second after a change at the latest, at once when a round ends, and every few seconds in
    any case, so that a reader can tell a process that waits from one that died. The folder must exist by then.

    Args:
        folder: of the run.
        name: of the run.
        rounds: in all.
        sites: that are expected.
    """

    def __init__(self, folder: Path, name: str, rounds: int, sites: Iterable[NodeId] = ()) -> None:
        self._folder = folder
        self._picture = Picture(
            name=one_line(name), rounds=rounds, sites={one_line(site): SitePicture() for site in sites}
        )
        self._changed = threading.Condition()
        self._dirty = self._urgent = self._closed = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._keep_writing, name="status", daemon=True)

    def __enter__(self) -> "Status":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._picture.ended = time.time()
            self._changed.notify_all()
        self._thread.join()
        self._write()

    def picture(self) -> Picture:
        """A copy, as of now."""
        with self._changed:
            return self._picture.model_copy(deep=True)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin where a resumed run stands.

        Args:
            rows: of metrics.jsonl.
        """
        with self._changed:
            for row in rows:
                self._commit(row)
                for node, facts in row.get("sites", {}).items():
                    site = self._site(node)
                    site.round = row["round"]
                    site.up_bytes += _count(facts, "up_bytes")
                    site.down_bytes += _count(facts, "down_bytes")
            self._dirty = True
            self._changed.notify_all()

    def __call__(self, event: Event) -> None:
        """Take an event into the picture.

        Raises:
            OSError: the file could not be written of late.
        """
        with self._changed:
            match event.kind:
                case Happening.COMMITTED:
                    self._commit(event.facts)
                case Happening.FAILED:
                    self._picture.failure = f"round {event.round}: {one_line(event.facts.get('why', ''))}"
                case Happening.WAITING:
                    connected, needed = (_count(event.facts, name) for name in ("connected", "needed"))
                    self._picture.waiting = f"{connected} of the {needed} sites that a round needs are connected"
                case Happening.OPENED:
                    self._picture.waiting = ""
                case Happening.FINISHED:
                    self._picture.finished = True
            if event.node and (event.kind in _KNOWN or one_line(event.node) in self._picture.sites):
                _take(self._site(event.node), event)
            self._dirty = True
            self._urgent = self._urgent or event.kind in _URGENT
            self._changed.notify_all()
            error = self._error
        if error is not None:
            raise OSError(f"{self._folder / picture.NAME} could not be written: {error.strerror}")

    def _site(self, node: NodeId) -> SitePicture:
        return self._picture.sites.setdefault(one_line(node), SitePicture())

    def _commit(self, row: Mapping[str, object]) -> None:
        self._picture.round = _count(row, "round")
        self._picture.loss, self._picture.accuracy = _score(row, "loss"), _score(row, "accuracy")

    def _keep_writing(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed, _HEARTBEAT_S)
            self._write()
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._closed, _PAUSE_S)

    def _write(self) -> None:
        with self._changed:
            self._dirty = self._urgent = False
            self._picture.updated = time.time()
            written = self._picture.model_dump_json(indent=1)
        try:
            picture.write(self._folder, written)
            self._error = None
        except OSError as error:
            self._error = error


def _take(site: SitePicture, event: Event) -> None:
    facts = event.facts
    match event.kind:
        case Happening.CONNECTED:
            site.state, site.version = "idle", one_line(facts.get("version", ""), 40)
        case Happening.DISCONNECTED:
            site.state = "away"
        case Happening.REJECTED:
            site.refusal = one_line(facts.get("why", ""))
            site.state = "rejected" if site.state in ("expected", "away") else site.state
        case Happening.WORKING:
            site.state = one_line(facts.get("state", "?"), 20)
        case Happening.ASKED:
            site.down_bytes += _count(facts, "down_bytes")
        case Happening.COUNTED:
            site.state = "idle" if site.state in _BUSY else site.state
            site.round, site.loss = event.round, _score(facts, "loss")
            site.up_bytes += _count(facts, "up_bytes")
        case Happening.REFUSED:
            site.refusal = one_line(facts.get("why", ""))
            site.up_bytes += _count(facts, "up_bytes")
    if event.kind not in _NO_SIGN_OF_LIFE:
        site.last_seen = time.time()


def _count(facts: Mapping[str, object], name: str) -> int:
    value = facts.get(name)
    return max(0, value) if isinstance(value, int) else 0


def _score(facts: Mapping[str, object], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
