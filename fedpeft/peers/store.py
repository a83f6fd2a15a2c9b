"""What a peer must not lose: the last closed epoch, and what was said since."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedpeft.durable import flush_folder, hold, read_sealed, write_durably, write_sealed
from fedpeft.errors import JournalError

_HEAD = 4 + 8 + 4  # before each record: its length, the beginning of its SHA-256, and that of the SHA-256 of both
_WAY_OUT = "restore the folder from a backup or move it away, and start with --restored"


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

    def begin(self, epoch: int, snapshot: bytes, record: bytes) -> None:
        """Keep a snapshot and a first record instead of all there was; durable, whole or not at all."""
        ...


class FolderStore:
    """A store in a folder, held by one process at a time.

    Args:
        folder: made if it does not exist.

    Raises:
        JournalError: another process holds it, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        if not (folder / "lock").exists():  # from here on, a folder without a log has lost it
            (folder / "log.0").touch()
            flush_folder(folder)
        self._lock = hold(folder, "is this peer")
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> None:
        epochs = (path.suffix[1:] for path in self._folder.glob("snapshot.*"))
        self._epoch = max((int(epoch) for epoch in epochs if epoch.isdigit()), default=0)
        if not self._path("log").exists():
            raise JournalError(f"{self._path('log')}: not there, and what this peer published is in it; {_WAY_OUT}")
        for _ in self._read():
            pass
        self._log = self._path("log").open("ab", buffering=0)
        self._tidy()

    def snapshot(self) -> bytes | None:
        """The last that `begin` was given."""
        return read_sealed(self._path("snapshot")) if self._epoch else None

    def records(self) -> Iterator[bytes]:
        """What was there when the store was opened, and has been appended since."""
        yield from self._read()

    def append(self, record: bytes, *, durable: bool) -> None:
        """Write a record, and flush it to the disk where it must last.

        Raises:
            OSError: it cannot be written; nothing can from then on, since nobody knows what is on the disk.
            JournalError: that was so before.
        """
        if self._log.closed:
            raise JournalError(f"{self._path('log')}: could not be written to before; make room, and start again")
        data = _framed(record)
        try:
            if self._log.write(data) != len(data):
                raise OSError(errno.ENOSPC, "a record was written in part", str(self._path("log")))
            if durable:
                os.fsync(self._log.fileno())
        except OSError:
            self._log.close()
            raise

    def begin(self, epoch: int, snapshot: bytes, record: bytes) -> None:
        """Write the new log, then the snapshot, which makes both of them count, then delete the old ones."""
        write_durably(self._folder / f"log.{epoch}", _framed(record))
        write_sealed(self._folder / f"snapshot.{epoch}", snapshot)
        self._log.close()
        self._epoch = epoch
        self._log = self._path("log").open("ab", buffering=0)
        self._tidy()

    def _tidy(self) -> None:
        """Delete what is of other epochs, and make the names of what stays durable."""
        for path in [*self._folder.glob("log.*"), *self._folder.glob("snapshot.*")]:
            if path not in (self._path("log"), self._path("snapshot")):
                path.unlink()
        flush_folder(self._folder)

    def close(self) -> None:
        """Let another process have the folder."""
        self._log.close()
        self._lock.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.{self._epoch}"

    def _read(self) -> Iterator[bytes]:
        """Whole records; what a crash left in part behind them was never acted upon, and is cut off.

        Raises:
            JournalError: something else is there.
        """
        path, whole = self._path("log"), 0
        data = path.read_bytes()
        while len(data) - whole >= _HEAD:
            head, begin = data[whole : whole + _HEAD], whole + _HEAD
            end = begin + int.from_bytes(head[:4], "little")
            torn = not any(data[whole:]) or (head[12:] == _seal(head[:12])[:4] and end > len(data))
            if torn:
                break
            record = data[begin:end]
            if head != _framed(record)[:_HEAD]:
                raise JournalError(f"{path}: damaged at byte {whole}, where a record of this peer was; {_WAY_OUT}")
            yield record
            whole = end
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())


def _framed(record: bytes) -> bytes:
    head = len(record).to_bytes(4, "little") + _seal(record)[:8]
    return head + _seal(head)[:4] + record


def _seal(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


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

    def begin(self, epoch: int, snapshot: bytes, record: bytes) -> None:
        """Keep a snapshot and a first record instead of all there was."""
        self._snapshot, self._records, self._durable = snapshot, [record], 1

    def crashed(self) -> "MemoryStore":
        """What is left after a crash: the records up to the last durable one."""
        left = MemoryStore()
        left._snapshot, left._records, left._durable = self._snapshot, self._records[: self._durable], self._durable
        return left
