"""A private key and its certificate, as an end of a connection shows them."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from fedpeft.errors import IdentityError
from fedpeft.keys import certificates as crt
from fedpeft.keys import making
from fedpeft.keys.authority import Authority

_WAY_OUT = {"server": "`fedpeft keys server`", "site": "`fedpeft keys site NAME --renew`, sign and install"}


def pair(folder: Path, end: Literal["server", "site"]) -> tuple[bytes, bytes]:
    """The private key and the certificate of an end, as PEM, seen to belong together and to hold now.

    Raises:
        IdentityError: they do not, or cannot be read.
    """
    authority = crt.read(folder / "ca.crt", crt.certificates, "the authority's certificate")[0]
    key = crt.read(folder / f"{end}.key", crt.private_key, f"the {end}'s private key")
    path = folder / f"{end}.crt"
    own = crt.read(path, crt.certificates, f"the {end}'s certificate")[0]
    with crt.expecting(f"{path}: expected a certificate by the authority of {folder / 'ca.crt'}"):
        crt.check_issued(own, authority)
    if own.public_key() != key.public_key():
        raise IdentityError(f"{path}: it is for another key than {end}.key; restore both from one backup")
    if own.not_valid_after_utc <= crt.utc(None):
        raise IdentityError(f"{path}: expired on {own.not_valid_after_utc:%Y-%m-%d}; {_WAY_OUT[end]}")
    return making.key_pem(key), crt.pem(own)


def trusted(folder: Path) -> bytes:
    """The authority's certificate, as PEM.

    Raises:
        IdentityError: it cannot be read.
    """
    return crt.pem(crt.read(folder / "ca.crt", crt.certificates, "the authority's certificate")[0])


def nobody() -> bytes:
    """A certificate, as PEM, whose private key no longer exists: to trust it is to trust nobody."""
    return crt.pem(Authority.new().certificate)


def fingerprint(certificate: Path) -> str:
    """The SHA-256 (hexadecimal) of a certificate's key, by which two people can compare it.

    Raises:
        IdentityError: it cannot be read.
    """
    return crt.read(certificate, lambda pem: crt.fingerprint(crt.public_key(crt.certificates(pem)[0])), "a certificate")


def expires(certificate: Path) -> datetime:
    """When a certificate expires, so that its holder can be told in time.

    Raises:
        IdentityError: it cannot be read.
    """
    return crt.read(certificate, crt.certificates, "a certificate")[0].not_valid_after_utc
