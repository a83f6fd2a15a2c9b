"""Signatures of peers: Ed25519 (RFC 8032) over a hash of 32 bytes that says what it is a hash of."""

import hashlib
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedpeft.durable import write_durably
from fedpeft.errors import IdentityError

KEY_BYTES, HASH_BYTES, SIGNATURE_BYTES = 32, 32, 64


def digest(purpose: str, *pieces: bytes) -> bytes:
    """SHA-256 of a purpose and of pieces, each behind its length, so that no two lists of them hash the same bytes.

    >>> digest("a", b"b") == digest("a", b"", b"b")
    False
    """
    hashed = hashlib.sha256()
    for piece in (f"fedpeft {purpose}".encode(), *pieces):
        hashed.update(len(piece).to_bytes(8, "little"))
        hashed.update(piece)
    return hashed.digest()


def words(*numbers: int) -> bytes:
    """Numbers in [0, 2^32) as a piece that `digest` takes: 4 bytes each, little-endian."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


class SigningKey:
    """A private key; `public` is what others know of it, 32 bytes.

    Args:
        seed: the 32 secret bytes; None: fresh ones.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._key = Ed25519PrivateKey.generate() if seed is None else Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, hashed: bytes) -> bytes:
        """The signature of a hash, 64 bytes; the same each time."""
        return self._key.sign(hashed)

    def save(self, path: Path) -> None:
        """Write the 32 secret bytes to a file that only its owner reads.

        Raises:
            IdentityError: the file is there already.
        """
        if path.exists():
            raise IdentityError(f"{path} is there already and is never overwritten: others know its key")
        write_durably(path, self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """The key of a file.

        Raises:
            IdentityError: it is not there, or is no key.
        """
        try:
            seed = path.read_bytes()
        except OSError as error:
            raise IdentityError(f"{path}: expected a signing key: {error.strerror}") from None
        if len(seed) != KEY_BYTES:
            raise IdentityError(f"{path}: expected a signing key of {KEY_BYTES} bytes, got {len(seed)}")
        return cls(seed)


@lru_cache(4096)
def verified(public: bytes, hashed: bytes, signature: bytes) -> bool:
    """Whether a signature of a hash was made with the private key of `public`."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, hashed)
    except (InvalidSignature, ValueError):
        return False
    return True
