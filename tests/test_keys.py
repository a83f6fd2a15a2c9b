import base64
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpeft import keys
from fedpeft.errors import IdentityError

NOW = datetime.now(UTC)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def enrol(coordinator: Path, site: Path, name: str) -> None:
    signed = keys.sign(coordinator, keys.request(site, name))
    keys.install(site, signed, coordinator / "ca.crt")


def written_request(path: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def common(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    keys.init(tmp_path / "coordinator", ["fl.example.org", "192.0.2.7"])
    return tmp_path / "coordinator"


@pytest.fixture
def modes() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_the_coordinator_makes(coordinator: Path) -> None:
    authority, server = certificate(coordinator / "ca.crt"), certificate(coordinator / "server.crt")
    server.verify_directly_issued_by(authority)
    authority.verify_directly_issued_by(authority)
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(address) for address in hosts.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    for made, signs in ((authority, True), (server, False)):
        basic = made.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = made.extensions.get_extension_for_class(x509.KeyUsage)
        assert basic.critical and basic.value.ca is signs
        assert usage.critical and usage.value.key_cert_sign is signs and usage.value.digital_signature is not signs
        own = made.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert own == x509.SubjectKeyIdentifier.from_public_key(made.public_key())
        above = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert above.key_identifier == x509.SubjectKeyIdentifier.from_public_key(authority.public_key()).digest
        assert made.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)
        assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
    assert keys.expires(coordinator / "server.crt") == server.not_valid_after_utc
    assert timedelta(days=824) < server.not_valid_after_utc - NOW < timedelta(days=826)
    assert keys.roster(coordinator) == {}


def test_a_site_is_certified_for_its_name_and_nothing_else(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    own = certificate(tmp_path / "a" / "site.crt")
    assert own.subject == common("hospital-a")
    assert list(own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert timedelta(days=364) < own.not_valid_after_utc - NOW < timedelta(days=366)
    [member] = keys.roster(coordinator).values()
    assert (member.site, member.not_after) == ("hospital-a", own.not_valid_after_utc)
    assert keys.requested(tmp_path / "a" / "hospital-a.csr") == ("hospital-a", member.fingerprint)
    assert keys.identify(coordinator, (tmp_path / "a" / "site.crt").read_bytes()) == member


def test_private_keys_are_their_owners_alone_from_the_first_instant(
    tmp_path: Path, modes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def flush(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        seen[path.name] = stat.S_IMODE(path.stat().st_mode)

    monkeypatch.setattr(os, "fsync", flush)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "site.key.tmp").write_bytes(b"left by a process that was killed, for all to read")
    keys.init(tmp_path / "coordinator", ["localhost"])
    enrol(tmp_path / "coordinator", tmp_path / "a", "hospital-a")
    secret = {name: mode for name, mode in seen.items() if ".key" in name}
    assert secret == {"ca.key.tmp": 0o600, "server.key.tmp": 0o600, "site.key.tmp": 0o600}
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert path.is_dir() or (mode == 0o600) == (path.suffix == ".key"), path
    assert stat.S_IMODE((tmp_path / "coordinator").stat().st_mode) == 0o700


def test_a_private_key_stays_where_it_was_made(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    made = {path.name for path in (tmp_path / "a").iterdir()}
    assert made == {"ca.crt", "hospital-a.csr", "site.crt", "site.key"}
    secret = (tmp_path / "a" / "site.key").read_text().splitlines()[1]
    assert not [path for path in coordinator.rglob("*") if path.is_file() and secret in path.read_text()]


def test_nothing_is_overwritten(coordinator: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in coordinator.iterdir() if path.is_file()}
    with pytest.raises(IdentityError, match="ca.key is there already and is never overwritten"):
        keys.init(coordinator, ["localhost"])
    assert before == {path: path.read_bytes() for path in coordinator.iterdir() if path.is_file()}
    keys.request(tmp_path / "a", "hospital-a")
    key = (tmp_path / "a" / "site.key").read_bytes()
    with pytest.raises(IdentityError, match="`fedpeft keys site hospital-a --renew` asks again"):
        keys.request(tmp_path / "a", "hospital-a")
    assert (tmp_path / "a" / "site.key").read_bytes() == key


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "../a", "a b", "ä", "a\n", "x" * 64, "fedpeft server"])
def test_a_site_id_is_checked_at_both_ends(coordinator: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="site id"):
        keys.request(tmp_path / "a", name)
    with pytest.raises(ValueError, match="site id"):
        keys.revoke(coordinator, name)
    if name:
        asked = written_request(tmp_path / "a.csr", common(name), ec.generate_private_key(ec.SECP256R1()))
        with pytest.raises(IdentityError, match=r"a.csr: expected a site's request.*site id"):
            keys.sign(coordinator, asked)
    assert keys.roster(coordinator) == {}


@pytest.mark.parametrize("name", ["a", "0", "hospital-a.example.org", "site_1", "x" * 63])
def test_a_site_id_may_be(coordinator: Path, tmp_path: Path, name: str) -> None:
    enrol(coordinator, tmp_path / "site", name)
    assert list(keys.roster(coordinator)) == [name]
    keys.revoke(coordinator, name)
    assert keys.roster(coordinator) == {}


@pytest.mark.parametrize("host", ["", "a b", "host:50051", "http://host", "192.0.2.300", "-host", "*.example.org"])
def test_a_host_is_checked(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="expected a DNS name or an IP address"):
        keys.init(tmp_path / "coordinator", [host])
    with pytest.raises(ValueError, match="at least one host"):
        keys.init(tmp_path / "coordinator", [])
    assert not (tmp_path / "coordinator").exists()


def test_a_request_that_was_changed_is_refused(coordinator: Path, tmp_path: Path) -> None:
    request = x509.load_pem_x509_csr(keys.request(tmp_path / "a", "hospital-a").read_bytes())
    der = request.public_bytes(serialization.Encoding.DER).replace(b"hospital-a", b"hospital-b")
    changed = tmp_path / "changed.csr"
    changed.write_bytes(x509.load_der_x509_csr(der).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(IdentityError, match="its signature is wrong; it was damaged or changed on its way"):
        keys.sign(coordinator, changed)
    assert keys.roster(coordinator) == {}


def test_only_plain_requests_are_signed(coordinator: Path, tmp_path: Path) -> None:
    path, key = tmp_path / "a.csr", ec.generate_private_key(ec.SECP256R1())
    two = x509.Name([*common("a"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "b")])
    other = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "a")])
    for subject in (two, other, x509.Name([])):
        with pytest.raises(IdentityError, match="not one common name"):
            keys.sign(coordinator, written_request(path, subject, key))
    for weak in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(IdentityError, match="not on the curve P-256"):
            keys.sign(coordinator, written_request(path, common("a"), weak))
    for content in (b"", b"x" * 70_000, (coordinator / "ca.crt").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(IdentityError, match=r"a.csr: expected a site's request"):
            keys.sign(coordinator, path)
    with pytest.raises(IdentityError, match="none.csr: expected a site's request.*No such file"):
        keys.sign(coordinator, tmp_path / "none.csr")


def test_what_a_request_asks_for_beyond_its_name_is_not_granted(coordinator: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common("hospital-a"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("fl.example.org")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "a.csr").write_bytes(greedy.public_bytes(serialization.Encoding.PEM))
    granted = certificate(keys.sign(coordinator, tmp_path / "a.csr")).extensions
    assert granted.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(granted.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        granted.get_extension_for_class(x509.SubjectAlternativeName)


def test_an_id_belongs_to_one_key_and_a_key_to_one_id(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    before = keys.roster(coordinator)
    thief = keys.request(tmp_path / "thief", "hospital-a")
    with pytest.raises(IdentityError, match="'hospital-a' is on the roster with another key.*keys revoke hospital-a"):
        keys.sign(coordinator, thief)
    key = serialization.load_pem_private_key((tmp_path / "a" / "site.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    twice = written_request(tmp_path / "b.csr", common("hospital-b"), key)
    with pytest.raises(IdentityError, match="its key is that of 'hospital-a'"):
        keys.sign(coordinator, twice)
    assert keys.roster(coordinator) == before


def test_a_renewal_keeps_the_key_and_lets_the_old_certificate_hold_until_it_expires(
    coordinator: Path, tmp_path: Path
) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    old, key = (tmp_path / "a" / "site.crt").read_bytes(), (tmp_path / "a" / "site.key").read_bytes()
    before = keys.roster(coordinator)["hospital-a"]
    asked = keys.request(tmp_path / "a", "hospital-a", renew=True)
    signed = keys.sign(coordinator, asked, days=500)
    assert keys.identify(coordinator, old).fingerprint == before.fingerprint
    keys.install(tmp_path / "a", signed, coordinator / "ca.crt")
    new = (tmp_path / "a" / "site.crt").read_bytes()
    assert new != old and len(x509.load_pem_x509_certificates(new)) == 1
    assert (tmp_path / "a" / "site.key").read_bytes() == key
    after = keys.identify(coordinator, new)
    assert after.fingerprint == before.fingerprint and after.not_after > before.not_after
    keys.sign(coordinator, asked, now=NOW + timedelta(days=400))
    [newest, second] = x509.load_pem_x509_certificates(keys.roster(coordinator)["hospital-a"].certificate)
    assert second == x509.load_pem_x509_certificate(new) and newest.not_valid_after_utc > second.not_valid_after_utc
    with pytest.raises(IdentityError, match="not on the roster with this certificate"):
        keys.identify(coordinator, old)


def test_a_renewal_needs_a_key_of_that_site(coordinator: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="site.key: expected the site's private key, to renew"):
        keys.request(tmp_path / "a", "hospital-a", renew=True)
    enrol(coordinator, tmp_path / "a", "hospital-a")
    with pytest.raises(IdentityError, match="the key of 'hospital-a', not of 'hospital-b'"):
        keys.request(tmp_path / "a", "hospital-b", renew=True)


def test_a_renewed_server_keeps_its_key_and_hosts(coordinator: Path) -> None:
    old, key = certificate(coordinator / "server.crt"), (coordinator / "server.key").read_bytes()
    hosts = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    keys.renew_server(coordinator, days=900)
    new = certificate(coordinator / "server.crt")
    assert new.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == hosts
    assert new.public_key() == old.public_key() and (coordinator / "server.key").read_bytes() == key
    assert new.not_valid_after_utc > old.not_valid_after_utc
    keys.renew_server(coordinator, ["other.example.org"])
    hosts = certificate(coordinator / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert hosts.value.get_values_for_type(x509.DNSName) == ["other.example.org"]


def test_a_revoked_key_does_not_come_back(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    shown = (tmp_path / "a" / "site.crt").read_bytes()
    serial = certificate(tmp_path / "a" / "site.crt").serial_number
    keys.revoke(coordinator, "hospital-a")
    assert keys.roster(coordinator) == {}
    assert [path.name for path in (coordinator / "revoked").iterdir()] == [f"hospital-a-{serial:x}.crt"]
    with pytest.raises(IdentityError, match="'hospital-a' is not on the roster"):
        keys.identify(coordinator, shown)
    with pytest.raises(IdentityError, match="'hospital-a' is not on the roster, which has no site"):
        keys.revoke(coordinator, "hospital-a")
    with pytest.raises(IdentityError, match="its key was revoked"):
        keys.sign(coordinator, keys.request(tmp_path / "a", "hospital-a", renew=True))
    (tmp_path / "a" / "site.key").unlink()
    (tmp_path / "a" / "site.crt").unlink()
    enrol(coordinator, tmp_path / "a", "hospital-a")
    assert list(keys.roster(coordinator)) == ["hospital-a"]


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    keys.init(folder, ["localhost"], now=NOW - timedelta(days=3600))
    asked = keys.request(tmp_path / "a", "hospital-a")
    signed = certificate(keys.sign(folder, asked))
    assert signed.not_valid_after_utc == certificate(folder / "ca.crt").not_valid_after_utc
    with pytest.raises(IdentityError, match="the authority's certificate expired"):
        keys.sign(folder, asked, now=NOW + timedelta(days=60))


def test_the_wrong_certificate_is_not_installed(coordinator: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    keys.init(other, ["localhost"])
    asked = keys.request(tmp_path / "a", "hospital-a")
    right, stranger = keys.sign(coordinator, asked), keys.sign(other, asked)
    someone = keys.sign(coordinator, keys.request(tmp_path / "b", "hospital-b"))
    for shown, authority, message in (
        (someone, coordinator / "ca.crt", "it is for another key than"),
        (stranger, coordinator / "ca.crt", "was not issued by"),
        (coordinator / "server.crt", coordinator / "ca.crt", "not one of a site"),
        (right, right, "expected the authority's certificate"),
        (asked, coordinator / "ca.crt", "expected the site's certificate"),
    ):
        with pytest.raises(IdentityError, match=message):
            keys.install(tmp_path / "a", shown, authority)
    with pytest.raises(IdentityError, match="expired on"):
        keys.install(tmp_path / "a", right, coordinator / "ca.crt", now=NOW + timedelta(days=366))
    assert not (tmp_path / "a" / "site.crt").exists() and not (tmp_path / "a" / "ca.crt").exists()
    keys.install(tmp_path / "a", right, coordinator / "ca.crt")
    with pytest.raises(IdentityError, match="another authority than that of"):
        keys.install(tmp_path / "a", stranger, other / "ca.crt")
    assert (tmp_path / "a" / "ca.crt").read_bytes() == (coordinator / "ca.crt").read_bytes()


def test_a_file_that_is_not_its_sites_certificate_is_named(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    good = (coordinator / "roster" / "hospital-a.crt").read_bytes()
    following = keys.Roster(coordinator)
    assert list(following.members()) == ["hospital-a"]
    bad = coordinator / "roster" / "hospital-b.crt"
    for content in (b"", b"\0" * 10, good, good[:-40], (coordinator / "ca.crt").read_bytes()):
        bad.write_bytes(content)
        with pytest.raises(IdentityError, match="hospital-b.crt: expected the certificate of 'hospital-b'"):
            keys.roster(coordinator)
        assert list(following.members()) == ["hospital-a"]
    keys.revoke(coordinator, "hospital-b")
    assert list(keys.roster(coordinator)) == ["hospital-a"]
    keys.sign(coordinator, keys.request(tmp_path / "b", "hospital-b"))
    assert list(following.members()) == ["hospital-a", "hospital-b"]


def test_an_authority_on_the_roster_lets_nobody_in(coordinator: Path, tmp_path: Path) -> None:
    following = keys.Roster(coordinator)
    (coordinator / "roster" / "hospital-a.crt").write_bytes((coordinator / "ca.crt").read_bytes())
    assert following.members() == {}


def test_a_roster_that_cannot_be_listed_lets_nobody_in(coordinator: Path, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "a", "hospital-a")
    following = keys.Roster(coordinator)
    assert list(following.members()) == ["hospital-a"]
    (coordinator / "roster").rename(coordinator / "elsewhere")
    assert following.members() == {}
    with pytest.raises(IdentityError, match="roster: expected the folder that `fedpeft keys init` made"):
        keys.roster(coordinator)
    (coordinator / "elsewhere").rename(coordinator / "roster")
    assert list(following.members()) == ["hospital-a"]


def test_keys_that_do_not_belong_together_are_refused(coordinator: Path, tmp_path: Path) -> None:
    keys.init(tmp_path / "other", ["localhost"])
    for name, message in (("ca.crt", "by the authority of"), ("server.key", "for another key than server.key")):
        kept = (coordinator / name).read_bytes()
        (coordinator / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(IdentityError, match=message):
            keys.pair(coordinator, "server")
        (coordinator / name).write_bytes(kept)
    assert keys.pair(coordinator, "server")
    (coordinator / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(IdentityError, match="ca.key is not the key of ca.crt"):
        keys.renew_server(coordinator)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_an_identity_error(coordinator: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "a"
    if not folder.exists():
        enrol(coordinator, folder, "hospital-a")
    request = x509.load_pem_x509_csr((folder / "hospital-a.csr").read_bytes())
    own = certificate(folder / "site.crt")
    holder = data.draw(st.sampled_from([request, own]))
    der = holder.public_bytes(serialization.Encoding.DER)
    unused_bits = len(der) - len(holder.signature) - 1  # of the signature; no parser and no signature minds them
    at = data.draw(st.integers(0, len(der) - 1).filter(lambda at: at != unused_bits))
    damaged = data.draw(st.sampled_from([der[:at], der[:at] + bytes([der[at] ^ 1 << at % 8]) + der[at + 1 :]]))
    label = "CERTIFICATE REQUEST" if data.draw(st.booleans()) else "CERTIFICATE"
    text = f"-----BEGIN {label}-----\n{base64.encodebytes(damaged).decode()}-----END {label}-----\n".encode()
    (tmp_path / "damaged").write_bytes(text)
    with pytest.raises(IdentityError):
        keys.sign(coordinator, tmp_path / "damaged")
    with pytest.raises(IdentityError):
        keys.install(folder, tmp_path / "damaged", coordinator / "ca.crt")
    with pytest.raises(IdentityError):
        keys.identify(coordinator, text)
