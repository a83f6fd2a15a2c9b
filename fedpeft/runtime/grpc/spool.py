"""Messages that come in pieces: kept on disk until they are whole, and taken up where they stopped."""

import hashlib
import mmap
from pathlib import Path

from fedpeft.errors import Defect, PayloadError

_READ = 1 << 20


class Spool:
    """A folder of messages on their way, at most one from each sender; what is in it may be deleted at any time.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def open(self, sender: str, digest: bytes, size: int) -> "Incoming":
        """A message as far as it has come; what else this sender had begun is forgotten."""
        path = self._path(sender, digest)
        self.discard(sender, but=path)
        return Incoming(path, digest, size)

    def discard(self, sender: str, but: Path | None = None) -> None:
        """Forget what this sender had begun."""
        for path in self._folder.glob(f"{sender}@*"):
            if path != but:
                path.unlink(missing_ok=True)

    def _path(self, sender: str, digest: bytes) -> Path:
        return self._folder / f"{sender}@{digest.hex()}"


class Incoming:
    """One message as it comes: memory does not grow with its size.

    Args:
        path: of its file; what is there already is taken for its beginning.
        digest: SHA-256 that it must have.
        size: bytes that it must have.
    """

    def __init__(self, path: Path, digest: bytes, size: int) -> None:
        self.path, self.digest, self.size = path, digest, size
        self._file = path.open("a+b", buffering=0)
        self._hash = hashlib.sha256()
        self.offset = self._file.tell()
        if self.offset > size:
            self._file.truncate(0)
            self.offset = 0
        self._file.seek(0)
        while piece := self._file.read(_READ):
            self._hash.update(piece)

    def add(self, offset: int, data: bytes) -> None:
        """The next piece.

        Raises:
            PayloadError: it is not the next, is empty, or is longer than the message.
        """
        if offset != self.offset or not 0 < len(data) <= self.size - offset:
            raise PayloadError(
                Defect.SIZE,
                f"expected a piece from byte {self.offset} on, of 1 to {self.size - self.offset} bytes, "
                f"got {len(data)} from byte {offset} on",
            )
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def whole(self) -> memoryview:
        """The message, as a view of its file.

        Raises:
            PayloadError: the bytes are not those that were announced; they are forgotten, so that it can come again.
        """
        if self.offset != self.size or self._hash.digest() != self.digest:
            self.discard()
            raise PayloadError(Defect.CHECKSUM, "the message is not what its sender announced; it must be sent again")
        return (
            memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))
            if self.size
            else memoryview(b"")
        )

    def close(self) -> None:
        """Keep what has come for a later connection."""
        self._file.close()

    def discard(self) -> None:
        """Forget what has come."""
        self._file.close()
        self.path.unlink(missing_ok=True)
