"""What decides a result is on disk before it takes effect: an append-only log, blobs by hash, and one lock.

A record is one line, `SHA-256 prefix, space, JSON`, flushed to the disk before `append` returns. A blob is a file
named by its SHA-256. A process killed at any instant leaves a readable journal: only the last line can be torn, and a
torn line was never acted upon.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from fedpeft.durable import flush_folder, hold, write_durably
from fedpeft.errors import JournalError

Record: TypeAlias = dict[str, Any]

_DIGEST = 16
_PASSING = ("ASK", "ACCEPT", "REFUSE", "FAIL", "CLOSE")


class Journal:
    """The log and the blobs of one run, held by one process at a time.

    Args:
        folder: made if it does not exist.

    Raises:
        JournalError: another process holds the folder, or a record before the last is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._lock = hold(folder, "is working on this run")
        try:
            self.records = self._read()
        except JournalError:
            self._lock.close()
            raise
        self._of: dict[tuple[str, int], list[Record]] = {}
        for record in self.records:
            self._index(record)
        self._log = (folder / "log.jsonl").open("ab")
        flush_folder(folder)

    def append(self, kind: str, /, **fields: Any) -> None:
        """Add a record; it is on the disk when this returns."""
        record = {"kind": kind, **fields}
        self._log.write(_line(record))
        self._log.flush()
        os.fsync(self._log.fileno())
        self.records.append(record)
        self._index(record)

    def of(self, kind: str, round_number: int) -> list[Record]:
        """The records of a kind in a round, oldest first."""
        return self._of.get((kind, round_number), [])

    def forget(self, before: int) -> None:
        """Let go, in memory, of what only an open round needs: who was asked and what was made of replies.

        Args:
            before: the first round that is not forgotten.
        """
        self.records = [r for r in self.records if r["kind"] not in _PASSING or r["round"] >= before]
        self._of = {key: kept for key, kept in self._of.items() if key[0] not in _PASSING or key[1] >= before}

    def _index(self, record: Record) -> None:
        if "round" in record:
            self._of.setdefault((record["kind"], record["round"]), []).append(record)

    def put(self, data: bytes | memoryview) -> str:
        """Store a blob; returns the SHA-256 (hexadecimal) that `get` takes."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._blobs / digest
        if not path.exists():
            write_durably(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """The blob of a digest.

        Raises:
            JournalError: it is not there, or damaged.
        """
        try:
            data = (self._blobs / digest).read_bytes()
        except OSError as error:
            raise JournalError(f"{self.folder}: a blob is missing: {error}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise JournalError(f"{self._blobs / digest}: the content is not what the name says")
        return data

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete all other blobs."""
        for path in self._blobs.iterdir():
            if path.name not in digests:
                path.unlink()

    def close(self) -> None:
        """Let another process have the folder."""
        self._log.close()
        self._lock.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> list[Record]:
        path = self.folder / "log.jsonl"
        if not path.exists():
            return []
        records = []
        whole = 0
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            record = _parse(line)
            if record is None:
                if number < len(lines):
                    raise JournalError(f"{path}: line {number} of {len(lines)} is damaged; restore it from a backup")
                break
            records.append(record)
            whole += len(line)
        if whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return records


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:_DIGEST].encode() + b" " + text + b"\n"


def _parse(line: bytes) -> Record | None:
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(text).hexdigest()[:_DIGEST].encode() != digest:
        return None
    record: Record = json.loads(text)
    return record
