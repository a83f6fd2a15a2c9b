"""What a peer must not lose: the last closed epoch, and what was said since."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedpeft.durable import flush_folder, hold, read_sealed, write_sealed
from fedpeft.errors import JournalError

_HEAD = 4 + 8  # length and the beginning of a SHA-256, before each record


class Store(Protocol):
    """A snapshot, and records since then."""

    def snapshot(self) -> bytes | None:
        """The last that `begin` was given."""
        ...

    def records(self) -> Iterator[bytes]:
        """What was appended since, oldest first."""
        ...

    def append(self, record: bytes, *, durable: bool) -> None:
        """Add a record; if `durable`, it and all before it survive a crash once this returns."""
        ...

    def begin(self, epoch: int, snapshot: bytes) -> None:
        """Keep a snapshot instead of all there was; durable, whole or not at all."""
        ...


class FolderStore:
    """A store in a folder, held by one process at a time.

    Args:
        folder: made if it does not exist.

    Raises:
        JournalError: another process holds it, or the snapshot is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = hold(folder, "is this peer")
        epochs = (path.suffix[1:] for path in folder.glob("snapshot.*"))
        self._epoch = max((int(epoch) for epoch in epochs if epoch.isdigit()), default=0)
        self._kept = list(self._read())
        self._log = self._path("log").open("ab", buffering=0)
        flush_folder(folder)

    def snapshot(self) -> bytes | None:
        """The last that `begin` was given."""
        return read_sealed(self._path("snapshot")) if self._epoch else None

    def records(self) -> Iterator[bytes]:
        """What was there when the store was opened, and has been appended since."""
        yield from self._kept

    def append(self, record: bytes, *, durable: bool) -> None:
        """Write a record, and flush it to the disk where it must last."""
        self._log.write(len(record).to_bytes(4, "little") + hashlib.sha256(record).digest()[:8] + record)
        if durable:
            os.fsync(self._log.fileno())
        self._kept.append(record)

    def begin(self, epoch: int, snapshot: bytes) -> None:
        """Write the snapshot, then begin a new log, then delete the old ones."""
        old = [self._path("log"), *([self._path("snapshot")] if self._epoch else [])]
        write_sealed(self._folder / f"snapshot.{epoch}", snapshot)
        self._log.close()
        self._epoch, self._kept = epoch, []
        self._log = self._path("log").open("ab", buffering=0)
        for path in old:
            path.unlink(missing_ok=True)
        flush_folder(self._folder)

    def close(self) -> None:
        """Let another process have the folder."""
        self._log.close()
        self._lock.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.{self._epoch}"

    def _read(self) -> Iterator[bytes]:
        """Whole records; what follows the last of them was never acted upon, and is cut off."""
        path, whole = self._path("log"), 0
        data = path.read_bytes() if path.exists() else b""
        while len(data) - whole >= _HEAD:
            begin = whole + _HEAD
            record = data[begin : begin + int.from_bytes(data[whole : whole + 4], "little")]
            if hashlib.sha256(record).digest()[:8] != data[whole + 4 : begin]:
                if begin + len(record) < len(data):
                    raise JournalError(
                        f"{path}: damaged at byte {whole}, and what this peer published is beyond it; restore the "
                        "folder from a backup and start with --restored"
                    )
                break
            yield record
            whole = begin + len(record)
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())


class MemoryStore:
    """A store that a simulated crash leaves as a disk would be left."""

    def __init__(self) -> None:
        self._snapshot: bytes | None = None
        self._records: list[bytes] = []
        self._durable = 0

    def snapshot(self) -> bytes | None:
        """The last that `begin` was given."""
        return self._snapshot

    def records(self) -> Iterator[bytes]:
        """What was appended since."""
        yield from self._records

    def append(self, record: bytes, *, durable: bool) -> None:
        """Keep a record."""
        self._records.append(record)
        if durable:
            self._durable = len(self._records)

    def begin(self, epoch: int, snapshot: bytes) -> None:
        """Keep a snapshot instead of all there was."""
        self._snapshot, self._records, self._durable = snapshot, [], 0

    def crashed(self) -> "MemoryStore":
        """What is left after a crash: the records up to the last durable one."""
        left = MemoryStore()
        left._snapshot, left._records, left._durable = self._snapshot, self._records[: self._durable], self._durable
        return left
