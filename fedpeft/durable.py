"""Files that are there whole or not at all, whenever the process is killed; folders that one process works in."""

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO

from fedpeft.errors import JournalError


def write_durably(path: Path, data: bytes | memoryview, mode: int = 0o666) -> None:
    """Put a file in place whole or not at all: temporary file, flush to disk, rename, flush the folder.

    It has its mode, less the process's umask, from its first instant on.
    """
    scratch = path.with_name(path.name + ".tmp")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    flush_folder(path.parent)


def append_durably(path: Path, line: bytes) -> None:
    """Add a line to a file, in one piece; a process that is killed meanwhile may leave a part of it."""
    with path.open("ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def write_sealed(path: Path, data: bytes) -> None:
    """`write_durably` with a SHA-256 in front, for files that are not named by their hash."""
    write_durably(path, hashlib.sha256(data).digest() + data)


def read_sealed(path: Path) -> bytes:
    """What `write_sealed` wrote.

    Raises:
        JournalError: the file is damaged.
    """
    raw = path.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise JournalError(f"{path}: the content is not what its checksum says; restore it from a backup or delete it")
    return raw[32:]


def flush_folder(folder: Path) -> None:
    """Make the names of a folder's files durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(folder: Path, use: str) -> IO[str]:
    """Keep other processes out of a folder until the file that this returns is closed, or the process ends.

    Raises:
        JournalError: another process is in; `use` says what it does there.
    """
    lock = (folder / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise JournalError(f"{folder}: another process {use}") from None
    return lock
