"""What comes from outside as a key, a certificate or a request: read, checked, or refused."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpeft.errors import IdentityError

Key: TypeAlias = ec.EllipticCurvePrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey
T = TypeVar("T")

_SITE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LARGEST = 1 << 16
_UNPARSED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)


def check_site(site: str) -> str:
    """The site id, if it is one.

    Raises:
        ValueError: it is not.
    """
    if not _SITE_ID.fullmatch(site):
        raise ValueError(
            f"site id {site!r}: expected 1 to 63 of a-z, 0-9, dot, dash and underscore, a letter or digit first"
        )
    return site


def read(path: Path, parse: Callable[[bytes], T], what: str) -> T:
    """What a file holds; `what` says so in words, for the message.

    Raises:
        IdentityError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise IdentityError(f"{path}: expected {what}: {error.strerror}") from None
    with expecting(f"{path}: expected {what}"):
        if len(data) > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        return parse(data)


@contextmanager
def expecting(expected: str) -> Iterator[None]:
    """Bytes from outside that hold something else are an IdentityError."""
    try:
        yield
    except _UNPARSED as error:
        raise IdentityError(f"{expected}, got something else: {error}") from None


def private_key(pem: bytes) -> Key:
    """The private key in a PEM text."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, Key) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key is not on the curve P-256")
    return key


def public_key(holder: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey:
    """The key that a certificate or a request is for."""
    key = holder.public_key()
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not on the curve P-256")
    return key


def certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates in a PEM text, at least one, in their order."""
    return x509.load_pem_x509_certificates(pem)


def common_name(subject: x509.Name) -> str:
    """The one name of a subject that is nothing but a name."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(list(subject)) != 1 or not names:
        raise ValueError(f"its subject is {subject.rfc4514_string()!r}, not one common name")
    return str(names[0].value)


def site_of(certificate: x509.Certificate, authority: x509.Certificate) -> str:
    """The site that a certificate is bound to.

    Raises:
        ValueError: the authority did not issue it, or issued it for something else.
    """
    check_issued(certificate, authority)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage or is_authority(certificate):
        raise ValueError("the certificate is not one of a site")
    public_key(certificate)
    return check_site(common_name(certificate.subject))


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate may sign others."""
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def check_issued(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """See that an authority signed a certificate.

    Raises:
        ValueError: it did not.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):
        name = authority.subject.rfc4514_string()
        raise ValueError(f"the certificate was not issued by {name!r}, the authority here") from None


def fingerprint(key: PublicKey) -> str:
    """The SHA-256 (hexadecimal) of a public key, the same in a request, a certificate and its renewals."""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


def pem(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """A certificate or a request as text."""
    return holder.public_bytes(serialization.Encoding.PEM)


def utc(now: datetime | None) -> datetime:
    """A moment given, or this one."""
    return now or datetime.now(UTC)
