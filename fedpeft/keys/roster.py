"""Who may connect: one file for each site; taking the file away shuts the site out."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedpeft.durable import flush_folder
from fedpeft.errors import IdentityError
from fedpeft.keys import certificates as crt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A site that may connect.

    Args:
        certificate: as PEM; earlier certificates of the same key that still hold stand below the newest.
        fingerprint: SHA-256 (hexadecimal) of its public key; a renewal does not change it.
        not_after: when the newest certificate expires.
    """

    site: str
    certificate: bytes
    fingerprint: str
    not_after: datetime


def roster(folder: Path) -> dict[str, Member]:
    """The sites that may connect, by id.

    Raises:
        IdentityError: a file cannot be read, or is not the certificate of the site that it is named for.
    """
    authority = _authority(folder)
    return {path.stem: _member(path, authority) for path in _listed(folder / "roster")}


def revoke(folder: Path, site: str) -> None:
    """Shut a site out: its next handshake fails, and so does its next call.

    Raises:
        IdentityError: it is not on the roster.
    """
    path = find(folder, site)
    if not path.exists():
        known = ", ".join(path.stem for path in _listed(folder / "roster")) or "no site"
        raise IdentityError(f"{folder}: {site!r} is not on the roster, which has {known}")
    try:
        newest = crt.read(path, crt.certificates, f"the certificate of {site!r}")[0]
        name = f"{site}-{newest.serial_number:x}.crt"
    except IdentityError:
        name = f"{site}-damaged"
    (folder / "revoked").mkdir(exist_ok=True)
    path.rename(folder / "revoked" / name)
    flush_folder(folder / "revoked")
    flush_folder(folder / "roster")


def identify(folder: Path, certificate: bytes) -> Member:
    """The site on the roster that a connection's certificate is bound to.

    Raises:
        IdentityError: the certificate is not, or no longer, on the roster, or has expired.
    """
    authority = _authority(folder)
    with crt.expecting("expected a site's certificate"):
        own = crt.certificates(certificate)[0]
        site = crt.site_of(own, authority)
    path = find(folder, site)
    member = _member(path, authority) if path.exists() else None
    if member is None or crt.pem(own) not in member.certificate:
        raise IdentityError(f"{site!r} is not on the roster with this certificate; it was revoked or never signed here")
    if own.not_valid_after_utc <= crt.utc(None):
        raise IdentityError(f"the certificate of {site!r} expired on {own.not_valid_after_utc:%Y-%m-%d}")
    return member


class Roster:
    """The roster as a running server follows it: only files that changed are read again.

    What cannot be read lets nobody in: a damaged file shuts its own site out, a folder that cannot be listed everyone.
    Both are logged.

    Raises:
        IdentityError: the authority's certificate cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._authority = folder / "roster", _authority(folder)
        self._kept: dict[str, tuple[tuple[int, ...], Member | None]] = {}
        self._lock = threading.Lock()

    def members(self) -> dict[str, Member]:
        """The sites that may connect now, by id."""
        with self._lock:
            try:
                self._kept = dict(self._look())
            except IdentityError as error:
                _log.error("nobody is let in: %s", error)
                self._kept = {}
            return {member.site: member for _, member in self._kept.values() if member is not None}

    def _look(self) -> Iterator[tuple[str, tuple[tuple[int, ...], Member | None]]]:
        for path in _listed(self._folder):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            state = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            before, member = self._kept.get(path.name, (None, None))
            yield path.name, (state, member if before == state else self._read(path))

    def _read(self, path: Path) -> Member | None:
        try:
            return _member(path, self._authority)
        except IdentityError as error:
            _log.error("a site is not let in: %s", error)
            return None


def find(folder: Path, site: str) -> Path:
    """Where a site's certificate lies on the roster.

    Raises:
        ValueError: that is no site id.
    """
    return folder / "roster" / f"{crt.check_site(site)}.crt"


def revoked_keys(folder: Path) -> set[str]:
    """The fingerprints of keys that were ever revoked.

    Raises:
        IdentityError: a file cannot be read.
    """
    return {
        crt.fingerprint(crt.read(path, lambda pem: crt.public_key(crt.certificates(pem)[0]), "a revoked certificate"))
        for path in _listed(folder / "revoked")
    }


def _authority(folder: Path) -> x509.Certificate:
    return crt.read(folder / "ca.crt", crt.certificates, "the authority's certificate")[0]


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.suffix == ".crt"]
    except OSError as error:
        raise IdentityError(f"{folder}: expected the folder that `fedpeft keys init` made: {error.strerror}") from None


def _member(path: Path, authority: x509.Certificate) -> Member:
    def parse(pem: bytes) -> Member:
        found = crt.certificates(pem)
        for certificate in found:
            if (site := crt.site_of(certificate, authority)) != path.stem:
                raise ValueError(f"the certificate is that of {site!r}")
        if len(prints := {crt.fingerprint(crt.public_key(certificate)) for certificate in found}) != 1:
            raise ValueError("the certificates are not of one key")
        text = b"".join(map(crt.pem, found))
        return Member(path.stem, text, prints.pop(), found[0].not_valid_after_utc)

    return crt.read(path, parse, f"the certificate of {path.stem!r}")
