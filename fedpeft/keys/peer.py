"""A peer's keys: one that signs what it publishes, one for TLS, and the card that tells an organiser of both."""

import json
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft.durable import write_durably
from fedpeft.errors import IdentityError
from fedpeft.keys import certificates as crt
from fedpeft.keys import making
from fedpeft.keys.signing import KEY_BYTES, SigningKey, digest, verified

PEER_DAYS = 3650
MOST_ADDRESSES = 4
LONGEST_ADDRESS = 262  # a name of 253, a colon, a port, and what an address of IPv6 has around it


@dataclass(frozen=True)
class Card:
    """What somebody who wants to take part sends to the run's organiser; nothing in it is secret.

    Args:
        run: 32 bytes; a card is of no use in another run.
        name: for people, and in the certificate.
        key: Ed25519 public key, 32 bytes.
        certificate: of its TLS, DER; signed by itself.
        addresses: "host:port" where it can be reached; none for a peer that only dials.
        signature: of all this, by `key`.
    """

    run: bytes
    name: str
    key: bytes
    certificate: bytes
    addresses: tuple[str, ...]
    signature: bytes = b""

    @cached_property
    def hash(self) -> bytes:
        """What is signed."""
        places = [place.encode() for place in self.addresses]
        return digest("card", self.run, self.name.encode(), self.key, self.certificate, *places)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal, of all that the card says, by which two people can compare it."""
        return self.hash.hex()

    def to_json(self) -> bytes:
        """As a file."""
        told = {
            "run": self.run.hex(),
            "name": self.name,
            "key": self.key.hex(),
            "certificate": self.certificate.hex(),
            "addresses": self.addresses,
            "signature": self.signature.hex(),
        }
        return json.dumps(told, indent=1).encode() + b"\n"

    @classmethod
    def load(cls, path: Path) -> "Card":
        """The card of a file, as its peer made it.

        Raises:
            IdentityError: it is none, was changed on its way, or its certificate is not one that a peer makes.
        """
        return crt.read(path, _parsed, "a card, as `fedpeft peer join` makes it")


def join(folder: Path, run: bytes, name: str, addresses: tuple[str, ...], *, now: datetime | None = None) -> Path:
    """Make a peer's keys in a folder, or use those that are there, and write NAME.card; returns its path.

    Raises:
        ValueError: the name cannot stand in a certificate, or an address is none.
        IdentityError: the keys in the folder are another peer's, or cannot be read.
    """
    check_name(name)
    for address in addresses:
        check_address(address)
    if len(addresses) > MOST_ADDRESSES:
        raise ValueError(f"expected at most {MOST_ADDRESSES} addresses, got {len(addresses)}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "peer.key").exists():
        SigningKey().save(folder / "peer.key")
    if not (folder / "tls.key").exists():
        write_durably(folder / "tls.key", making.key_pem(making.new_key()), mode=0o600)
    if not (folder / "tls.crt").exists():
        _certify(folder, name, now)
    signing, (_, certificate) = SigningKey.load(folder / "peer.key"), pair(folder)
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    if (held := crt.common_name(x509.load_der_x509_certificate(der).subject)) != name:
        raise IdentityError(f"{folder}: holds the keys of {held!r}, not of {name!r}; choose another folder")
    card = Card(run, name, signing.public, der, addresses)
    card = Card(run, name, signing.public, der, addresses, signing.sign(card.hash))
    write_durably(folder / f"{name}.card", card.to_json())
    return folder / f"{name}.card"


def pair(folder: Path) -> tuple[bytes, bytes]:
    """The private key of a peer's TLS and its certificate, as PEM, seen to belong together and to hold now.

    Raises:
        IdentityError: they do not, or cannot be read.
    """
    key = crt.read(folder / "tls.key", crt.private_key, "a peer's TLS key, made by `fedpeft peer join`")
    path = folder / "tls.crt"
    own = crt.read(path, crt.certificates, "a peer's certificate, made by `fedpeft peer join`")[0]
    if own.public_key() != key.public_key():
        raise IdentityError(f"{path}: it is for another key than tls.key; restore both from one backup")
    if own.not_valid_after_utc <= crt.utc(None):
        raise IdentityError(
            f"{path}: expired on {own.not_valid_after_utc:%Y-%m-%d}; delete it, `fedpeft peer join` again, and have "
            "the new card admitted"
        )
    return making.key_pem(key), crt.pem(own)


def usable(certificate: bytes) -> bool:
    """Whether bytes are a certificate at all, so that a list of many is not spoilt by one."""
    try:
        x509.load_der_x509_certificate(certificate)
    except ValueError:
        return False
    return True


def check_name(name: str) -> str:
    """The name, if it can stand in a certificate: what is both a site id and a DNS name.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(making.general_name(crt.check_site(name)), x509.DNSName):
        raise ValueError(f"name {name!r}: expected a name, got an address")
    return name


def check_address(address: str) -> str:
    """The address, if it is one: "host:port", or "[host]:port" where the host has colons.

    Raises:
        ValueError: it is not.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    right = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16 and (":" in host) == bracketed
    if not right or not colon:
        raise ValueError(f"address {address!r}: expected host:port, with [brackets] around a host that has colons")
    making.general_name(host[1:-1] if bracketed else host)
    return address


def _certify(folder: Path, name: str, now: datetime | None) -> None:
    key = crt.read(folder / "tls.key", crt.private_key, "a peer's TLS key")
    begins = crt.utc(now)
    extensions = [
        *making.basics(authority=False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName(name)]),
    ]
    span = (begins, begins + timedelta(days=PEER_DAYS))
    made = making.certify(name, key.public_key(), making.named(name), key, span, extensions)
    write_durably(folder / "tls.crt", crt.pem(made))


def _parsed(data: bytes) -> Card:
    try:
        told: Any = json.loads(data)
        run, key, certificate, signature = (
            bytes.fromhex(told[field]) for field in ("run", "key", "certificate", "signature")
        )
        places = tuple(check_address(place) for place in told["addresses"])
        card = Card(run, check_name(told["name"]), key, certificate, places, signature)
    except (KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is malformed: {error}") from None
    if len(card.key) != KEY_BYTES or not verified(card.key, card.hash, card.signature):
        raise ValueError("its signature is wrong; it was damaged or changed on its way")
    own = x509.load_der_x509_certificate(card.certificate)
    crt.public_key(own)
    try:
        own.verify_directly_issued_by(own)
    except InvalidSignature:
        raise ValueError("its certificate is not signed by itself") from None
    if _name(own) != card.name or crt.is_authority(own) or len(card.addresses) > MOST_ADDRESSES:
        raise ValueError("its certificate is another's or may sign others', or it has too many addresses")
    return card


def _name(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.DNSName)
    if found != [crt.common_name(certificate.subject)]:
        raise ValueError(f"a peer's certificate names {found}; expected one name, that of its subject")
    return found[0]
