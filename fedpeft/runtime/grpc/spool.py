"""Messages that come in pieces: kept on disk until they are whole, and taken up where they stopped."""

import hashlib
import mmap
import os
import threading
from pathlib import Path

from fedpeft.errors import Defect, PayloadError

PIECE = 1 << 20  # bytes of every piece but the last


class Spool:
    """A folder of messages on their way, at most one from each sender; what is in it may be deleted at any time.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._growing: dict[str, Incoming] = {}

    def open(self, sender: str, digest: bytes, size: int) -> "Incoming":
        """A message as far as it has come; what else this sender had begun is forgotten, and grows no more.

        A sender may be back on a second connection while the first still hands pieces over.
        """
        incoming = Incoming(self._folder / f"{sender}@{digest.hex()}", digest, size)
        with self._lock:
            before, self._growing[sender] = self._growing.get(sender), incoming
        if before is not None:
            before.stop()
        for path in self._folder.glob(f"{sender}@*"):
            if path != incoming.path:
                path.unlink(missing_ok=True)
        incoming.recall()
        return incoming


class Incoming:
    """One message as it comes: memory does not grow with its size, and no file stays open.

    Args:
        path: of its file; what is there already is taken for its beginning.
        digest: SHA-256 that it must have.
        size: bytes that it must have.
    """

    def __init__(self, path: Path, digest: bytes, size: int) -> None:
        self.path, self.digest, self.size = path, digest, size
        self.offset, self.recalled = 0, 0
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._stopped = False

    def recall(self) -> None:
        """Go on after what is on the disk, `recalled` bytes; a file that is too long is begun anew."""
        self.path.touch()
        if self.path.stat().st_size > self.size:
            self.discard()
            self.path.touch()
        with self.path.open("rb") as file:
            while piece := file.read(PIECE):
                self._hash.update(piece)
                self.offset += len(piece)
        self.recalled = self.offset

    def add(self, data: bytes) -> None:
        """The next piece.

        Raises:
            PayloadError: it has not the size of the next piece, or the message goes on over another connection.
        """
        expected = min(PIECE, self.size - self.offset)
        if len(data) != expected:
            raise PayloadError(Defect.SIZE, f"expected a piece of {expected} bytes, got {len(data)}")
        with self._lock:
            if self._stopped:
                raise PayloadError(Defect.SIZE, "the message goes on over another connection")
            self._write(data)
        self._hash.update(data)
        self.offset += len(data)

    def stop(self) -> None:
        """Write nothing more, not even a piece that is at hand."""
        with self._lock:
            self._stopped = True

    def whole(self) -> memoryview:
        """The message, as a view of its file.

        Raises:
            PayloadError: the bytes are not those that were announced; they are forgotten, so that it can come again.
        """
        self.stop()
        if self.offset != self.size or self._hash.digest() != self.digest:
            self.discard()
            raise PayloadError(Defect.CHECKSUM, "the message is not what its sender announced")
        if not self.size:
            return memoryview(b"")
        with self.path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))

    def discard(self) -> None:
        """Forget what has come."""
        self.path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        left, file = memoryview(data), os.open(self.path, os.O_WRONLY)
        try:
            while left:
                left = left[os.pwrite(file, left, self.offset + len(data) - len(left)) :]
        finally:
            os.close(file)
