"""At the coordinator: an authority, the server's certificate, and the signing of what sites ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft.durable import write_durably
from fedpeft.errors import IdentityError
from fedpeft.keys import certificates as crt
from fedpeft.keys import making
from fedpeft.keys.roster import find, revoked_keys, roster

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
SITE_DAYS = 365
_SERVER = "fedpeft server"


@dataclass(frozen=True)
class Authority:
    """The one that signs: a certificate that both ends trust, and its private key."""

    certificate: x509.Certificate
    key: crt.Key

    @classmethod
    def new(cls, days: int = AUTHORITY_DAYS, now: datetime | None = None) -> "Authority":
        """An authority under a name that no other has."""
        key, begins = making.new_key(), crt.utc(now)
        name = f"fedpeft authority {crt.fingerprint(key.public_key())[:16]}"
        span = (begins, begins + timedelta(days=days))
        return cls(
            making.certify(name, key.public_key(), making.named(name), key, span, making.basics(authority=True)), key
        )

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """The authority of a folder.

        Raises:
            IdentityError: it is not there, or its two files do not belong together.
        """
        certificate = crt.read(folder / "ca.crt", crt.certificates, "the authority's certificate")[0]
        key = crt.read(folder / "ca.key", crt.private_key, "the authority's private key")
        if certificate.public_key() != key.public_key():
            raise IdentityError(f"{folder}: ca.key is not the key of ca.crt; restore both from one backup")
        return cls(certificate, key)

    def issue(self, subject: str, key: crt.PublicKey, hosts: Sequence[str], days: int, now: datetime | None) -> bytes:
        """A certificate as text, for a server where hosts are named, else for a site; it never outlives the authority.

        Raises:
            IdentityError: the authority has expired.
        """
        begins, ends = crt.utc(now), self.certificate.not_valid_after_utc
        if begins >= ends:
            raise IdentityError(
                f"the authority's certificate expired on {ends:%Y-%m-%d}; make a new one in a new folder"
            )
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        extensions = [*making.basics(authority=False), x509.ExtendedKeyUsage([usage])]
        if hosts:
            extensions.append(x509.SubjectAlternativeName([making.general_name(host) for host in hosts]))
        span = (begins, min(begins + timedelta(days=days), ends))
        return crt.pem(making.certify(subject, key, self.certificate.subject, self.key, span, extensions))


def init(folder: Path, hosts: Sequence[str], days: int = SERVER_DAYS, *, now: datetime | None = None) -> None:
    """Make an authority, the server's key and certificate, and an empty roster.

    The server's certificate holds for so many days and for these hosts: every DNS name and address by which sites
    reach it, and no other.

    Raises:
        IdentityError: keys are there already.
    """
    _check(hosts, days)
    for name in ("ca.key", "ca.crt", "server.key", "server.crt"):
        if (folder / name).exists():
            raise IdentityError(
                f"{folder / name} is there already and is never overwritten: sites trust it; choose another folder, "
                "or `fedpeft keys server` for a new certificate of the server"
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("roster", "revoked"):
        (folder / name).mkdir(exist_ok=True)
    authority, key = Authority.new(now=now), making.new_key()
    write_durably(folder / "ca.key", making.key_pem(authority.key), mode=0o600)
    write_durably(folder / "server.key", making.key_pem(key), mode=0o600)
    write_durably(folder / "server.crt", authority.issue(_SERVER, key.public_key(), hosts, days, now))
    write_durably(folder / "ca.crt", crt.pem(authority.certificate))


def renew_server(
    folder: Path, hosts: Sequence[str] = (), days: int = SERVER_DAYS, *, now: datetime | None = None
) -> None:
    """Give the server's key a new certificate, for the hosts of the old one where none are named.

    A running server uses it from the next handshake on.

    Raises:
        IdentityError: the authority or the server's key cannot be read.
    """
    old = crt.read(folder / "server.crt", crt.certificates, "the server's certificate")[0]
    hosts = hosts or _hosts(old)
    _check(hosts, days)
    authority = Authority.load(folder)
    key = crt.read(folder / "server.key", crt.private_key, "the server's private key")
    write_durably(folder / "server.crt", authority.issue(_SERVER, key.public_key(), hosts, days, now))


def sign(folder: Path, request: Path, days: int = SITE_DAYS, *, now: datetime | None = None) -> Path:
    """Put a site on the roster, or renew its certificate, and return the certificate's path, to be sent to the site.

    Whoever signs has compared the request's fingerprint with the site. A renewed site may use its old certificate,
    which stands below the new one in the file, until that expires.

    Raises:
        IdentityError: the request is damaged, or its site or key is already known otherwise.
    """
    if days < 1:
        raise ValueError(f"days must be at least 1, got {days}")
    authority = Authority.load(folder)
    site, key = crt.read(request, _request, "a site's request, as `fedpeft keys site` makes it")
    own = crt.fingerprint(key)
    if own in revoked_keys(folder):
        raise IdentityError(
            f"{request}: its key was revoked; the site deletes site.key and asks anew with `fedpeft keys site {site}`"
        )
    members = roster(folder)
    for member in members.values():
        if member.site == site and member.fingerprint != own:
            raise IdentityError(
                f"{request}: {site!r} is on the roster with another key, {member.fingerprint}, got {own}; "
                f"if the site made a new key, `fedpeft keys revoke {site}` first"
            )
        if member.site != site and member.fingerprint == own:
            raise IdentityError(f"{request}: its key is that of {member.site!r}; each site makes a key of its own")
    path = find(folder, site)
    earlier = crt.certificates(members[site].certificate) if site in members else []
    holding = [crt.pem(old) for old in earlier if old.not_valid_after_utc > crt.utc(now)]
    write_durably(path, authority.issue(site, key, (), days, now) + b"".join(holding))
    return path


def requested(request: Path) -> tuple[str, str]:
    """The site id and the key's fingerprint in a request, to be compared with what the site says.

    Raises:
        IdentityError: the request is damaged.
    """
    site, key = crt.read(request, _request, "a site's request, as `fedpeft keys site` makes it")
    return site, crt.fingerprint(key)


def _request(pem: bytes) -> tuple[str, crt.PublicKey]:
    request = x509.load_pem_x509_csr(pem)
    key = crt.public_key(request)
    if not request.is_signature_valid:
        raise ValueError("its signature is wrong; it was damaged or changed on its way")
    return crt.check_site(crt.common_name(request.subject)), key


def _hosts(server: x509.Certificate) -> list[str]:
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.DNSName) + addresses


def _check(hosts: Sequence[str], days: int) -> None:
    if not hosts:
        raise ValueError("name at least one host by which sites reach the server")
    for host in hosts:
        making.general_name(host)
    if days < 1:
        raise ValueError(f"days must be at least 1, got {days}")
