"""At a site: a private key that never leaves, a request to the coordinator, and what the coordinator sends back."""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedpeft.durable import write_durably
from fedpeft.errors import IdentityError
from fedpeft.keys import certificates as crt
from fedpeft.keys import making


def request(folder: Path, site: str, *, renew: bool = False) -> Path:
    """Make the site's private key, or to renew use the one that is there, and a request; returns the request's path.

    Raises:
        IdentityError: a key is there already, or to renew none, or it is another site's.
    """
    crt.check_site(site)
    path = folder / "site.key"
    if renew:
        key = crt.read(path, crt.private_key, "the site's private key, to renew its certificate")
        _check_same_site(folder, site)
    else:
        if path.exists():
            raise IdentityError(
                f"{path} is there already and is never overwritten; `fedpeft keys site {site} --renew` asks again with "
                "this key; for a new one, delete it, and the coordinator revokes the site before it signs"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = making.new_key()
        write_durably(path, making.key_pem(key), mode=0o600)
    asked = x509.CertificateSigningRequestBuilder().subject_name(making.named(site)).sign(key, hashes.SHA256())
    write_durably(folder / f"{site}.csr", crt.pem(asked))
    return folder / f"{site}.csr"


def install(folder: Path, certificate: Path, ca: Path, *, now: datetime | None = None) -> None:
    """Put the site's certificate and the authority's beside the site's key.

    Raises:
        IdentityError: the certificate is for another key, by another authority or expired, or the site trusts another
            authority already.
    """
    key = crt.read(folder / "site.key", crt.private_key, "the site's private key, made by `fedpeft keys site`")
    authority = crt.read(ca, _authority, "the authority's certificate, ca.crt")
    own = crt.read(certificate, lambda pem: _checked(pem, authority), "the site's certificate")
    if own.public_key() != key.public_key():
        raise IdentityError(f"{certificate}: it is for another key than {folder / 'site.key'}; ask for the right one")
    for path, held in ((certificate, own), (ca, authority)):
        if held.not_valid_after_utc <= crt.utc(now):
            raise IdentityError(
                f"{path}: expired on {held.not_valid_after_utc:%Y-%m-%d}; ask the coordinator for a new one"
            )
    trusted = folder / "ca.crt"
    if trusted.exists() and crt.read(trusted, _authority, "the authority's certificate") != authority:
        raise IdentityError(
            f"{trusted}: another authority than that of {ca}; if the coordinator really has a new one, delete the file"
        )
    write_durably(trusted, crt.pem(authority))
    write_durably(folder / "site.crt", crt.pem(own))


def _check_same_site(folder: Path, site: str) -> None:
    path = folder / "site.crt"
    if path.exists():
        subject = crt.read(
            path, lambda pem: crt.common_name(crt.certificates(pem)[0].subject), "the site's certificate"
        )
        if subject != site:
            raise IdentityError(f"{path}: this is the key of {subject!r}, not of {site!r}; choose another folder")


def _checked(pem: bytes, authority: x509.Certificate) -> x509.Certificate:
    newest = crt.certificates(pem)[0]
    crt.site_of(newest, authority)
    return newest


def _authority(pem: bytes) -> x509.Certificate:
    found = crt.certificates(pem)
    if len(found) != 1 or not crt.is_authority(found[0]):
        raise ValueError("it is not the one certificate of an authority")
    return found[0]
