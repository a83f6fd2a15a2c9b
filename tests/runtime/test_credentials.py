import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft import keys
from fedpeft.errors import IdentityError
from fedpeft.runtime.grpc import credentials
from tests.runtime.door import Greeter, Relay, Server, call, dialled, forged, handshake, raw, self_made, started

LONG_AGO = datetime.now(UTC) - timedelta(days=100)
GREETING = b"\x00\x00"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    keys.init(tmp_path / "coordinator", ["localhost"])
    with started(tmp_path / "coordinator") as running:
        yield running


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Path:
    return server.enrol(tmp_path / "a", "hospital-a")


def test_a_known_site_gets_through_and_is_named(server: Server, site: Path, tmp_path: Path) -> None:
    other = server.enrol(tmp_path / "b", "hospital-b")
    members = keys.roster(server.folder)
    for folder, name in ((site, "hospital-a"), (other, "hospital-b")):
        assert call(server.port, credentials.site_credentials(folder)) == f"{name} {members[name].fingerprint}"


def test_an_empty_roster_lets_nobody_in(server: Server, tmp_path: Path) -> None:
    ca = server.folder / "ca.crt"
    server.refuses(raw(ca))
    server.refuses(raw(ca, *forged(tmp_path, "hospital-a", *self_made("hospital-a"))))
    server.refuses(raw(ca, server.folder / "server.key", server.folder / "server.crt"))


def test_who_has_no_certificate_is_refused(server: Server, site: Path) -> None:
    server.refuses(raw(server.folder / "ca.crt"))


def test_the_servers_and_the_authoritys_own_keys_open_nothing(server: Server, site: Path) -> None:
    for name in ("server", "ca"):
        server.refuses(raw(server.folder / "ca.crt", server.folder / f"{name}.key", server.folder / f"{name}.crt"))


def test_a_certificate_of_another_authority_is_refused(server: Server, site: Path, tmp_path: Path) -> None:
    keys.init(tmp_path / "other", ["localhost"])
    signed = keys.sign(tmp_path / "other", keys.request(tmp_path / "b", "hospital-a"))
    server.refuses(raw(server.folder / "ca.crt", tmp_path / "b" / "site.key", signed))


def test_a_certificate_of_our_authority_that_is_not_on_the_roster_is_refused(
    server: Server, site: Path, tmp_path: Path
) -> None:
    unlisted = server.enrol(tmp_path / "b", "hospital-b")
    (server.folder / "roster" / "hospital-b.crt").unlink()
    server.refuses(credentials.site_credentials(unlisted))
    assert call(server.port, credentials.site_credentials(site)).startswith("hospital-a ")


def test_a_site_cannot_certify_others(server: Server, site: Path, tmp_path: Path) -> None:
    signer = serialization.load_pem_private_key((site / "site.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    own = (site / "site.crt").read_bytes()
    issuer = x509.load_pem_x509_certificate(own).subject
    server.refuses(raw(server.folder / "ca.crt", *forged(tmp_path, "hospital-b", issuer, signer, chain=own)))


def test_the_same_name_with_another_key_is_refused(server: Server, site: Path, tmp_path: Path) -> None:
    server.refuses(raw(server.folder / "ca.crt", *forged(tmp_path, "hospital-a", *self_made("hospital-a"))))
    old_key, old = tmp_path / "old.key", tmp_path / "old.crt"
    with dialled(server.port, credentials.site_credentials(site)) as connected:
        assert connected(b"", timeout=20).startswith(b"hospital-a ")
        (site / "site.key").rename(old_key)
        (site / "site.crt").rename(old)
        keys.revoke(server.folder, "hospital-a")
        server.enrol(site, "hospital-a")
        with pytest.raises(grpc.RpcError, match="'hospital-a' is not on the roster with this certificate"):
            connected(b"", timeout=20)
    server.refuses(raw(server.folder / "ca.crt", old_key, old))
    assert call(server.port, credentials.site_credentials(site)).startswith("hospital-a ")


def test_an_expired_certificate_is_refused(server: Server, site: Path, tmp_path: Path) -> None:
    asked = keys.request(tmp_path / "b", "hospital-b")
    signed = keys.sign(server.folder, asked, days=30, now=LONG_AGO)
    assert "hospital-b" in keys.roster(server.folder)
    server.refuses(raw(server.folder / "ca.crt", tmp_path / "b" / "site.key", signed))
    with pytest.raises(IdentityError, match="certificate of 'hospital-b' expired on"):
        keys.identify(server.folder, signed.read_bytes())
    keys.install(tmp_path / "b", signed, server.folder / "ca.crt", now=LONG_AGO)
    with pytest.raises(IdentityError, match=r"site.crt: expired on .*`fedpeft keys site NAME --renew`"):
        credentials.site_credentials(tmp_path / "b")
    keys.install(tmp_path / "b", keys.sign(server.folder, asked), server.folder / "ca.crt")
    assert call(server.port, credentials.site_credentials(tmp_path / "b")).startswith("hospital-b ")


def test_revoking_shuts_out_new_connections_and_old_ones(server: Server, site: Path, tmp_path: Path) -> None:
    shown, other = credentials.site_credentials(site), server.enrol(tmp_path / "b", "hospital-b")
    with dialled(server.port, shown) as connected:
        assert connected(b"", timeout=20).startswith(b"hospital-a ")
        keys.revoke(server.folder, "hospital-a")
        with pytest.raises(grpc.RpcError, match="'hospital-a' is not on the roster") as refusal:
            connected(b"", timeout=20)
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    server.refuses(shown)
    server.port = server.other_port
    server.refuses(shown)
    assert call(server.port, credentials.site_credentials(other)).startswith("hospital-b ")


def test_a_revoked_site_cannot_come_back_on_the_same_channel(server: Server, site: Path) -> None:
    until = time.monotonic() + 30
    with Relay(server.port) as relay, dialled(relay.port, credentials.site_credentials(site)) as method:
        assert method(b"", timeout=20).startswith(b"hospital-a ")
        relay.cut()
        while relay.connections < 2 and time.monotonic() < until:
            with suppress(grpc.RpcError):
                assert method(b"", timeout=20, wait_for_ready=True).startswith(b"hospital-a ")
        keys.revoke(server.folder, "hospital-a")
        relay.cut()
        before = server.greeter.calls
        while relay.connections < 4 and time.monotonic() < until:
            with pytest.raises(grpc.RpcError) as refusal:
                method(b"", timeout=1, wait_for_ready=True)
            assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert relay.connections >= 4
        assert server.greeter.calls == before


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_ticket_does_not_get_past_the_roster(server: Server, site: Path, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=site / "ca.crt")
    context.load_cert_chain(site / "site.crt", site / "site.key")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    greeting, ticket, _ = handshake(server.port, context)
    assert greeting.startswith(GREETING)
    assert ticket is not None and ticket.has_ticket
    greeting, _, resumed = handshake(server.port, context, ticket)
    assert greeting.startswith(GREETING) and resumed
    keys.revoke(server.folder, "hospital-a")
    greeting, _, resumed = handshake(server.port, context, ticket)
    assert greeting == b"" and not resumed


def test_a_renewed_site_may_use_either_certificate(server: Server, site: Path) -> None:
    old = credentials.site_credentials(site)
    signed = keys.sign(server.folder, keys.request(site, "hospital-a", renew=True))
    before = call(server.port, old)
    keys.install(site, signed, server.folder / "ca.crt")
    assert call(server.port, credentials.site_credentials(site)) == before
    keys.revoke(server.folder, "hospital-a")
    server.refuses(old)
    server.refuses(credentials.site_credentials(site))


def test_a_site_joins_while_the_server_runs(server: Server, site: Path, tmp_path: Path) -> None:
    assert call(server.port, credentials.site_credentials(site)).startswith("hospital-a ")
    late = server.enrol(tmp_path / "b", "hospital-b")
    assert call(server.port, credentials.site_credentials(late)).startswith("hospital-b ")


def test_a_roster_that_cannot_be_read_lets_nobody_in(server: Server, site: Path, tmp_path: Path) -> None:
    shown = credentials.site_credentials(site)
    assert call(server.port, shown).startswith("hospital-a ")
    (server.folder / "roster").rename(tmp_path / "elsewhere")
    server.refuses(shown)
    (tmp_path / "elsewhere").rename(server.folder / "roster")
    assert call(server.port, shown).startswith("hospital-a ")
    (server.folder / "roster" / "hospital-b.crt").write_bytes(b"damaged")
    assert call(server.port, shown).startswith("hospital-a ")
    (server.folder / "roster" / "hospital-a.crt").write_bytes(b"damaged")
    server.refuses(shown)


def test_a_renewed_server_certificate_is_shown_at_once(server: Server, site: Path) -> None:
    def shown() -> bytes:
        context = ssl.create_default_context(cafile=site / "ca.crt")
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost"
        ) as one:
            return ssl.DER_cert_to_PEM_cert(one.getpeercert(binary_form=True) or b"").encode()

    old = (server.folder / "server.crt").read_bytes()
    assert shown() == old
    keys.renew_server(server.folder)
    new = (server.folder / "server.crt").read_bytes()
    assert shown() == new != old
    (server.folder / "server.crt").write_bytes(b"damaged")
    assert shown() == new
    assert call(server.port, credentials.site_credentials(site)).startswith("hospital-a ")
    keys.revoke(server.folder, "hospital-a")
    server.refuses(credentials.site_credentials(site))


def test_a_server_under_another_name_is_refused_by_the_site(tmp_path: Path) -> None:
    keys.init(tmp_path / "coordinator", ["fl.example.org", "127.0.0.1"])
    with started(tmp_path / "coordinator") as server:
        site = server.enrol(tmp_path / "a", "hospital-a")
        server.refuses(credentials.site_credentials(site))
        keys.renew_server(server.folder, ["localhost"])
        assert call(server.port, credentials.site_credentials(site)).startswith("hospital-a ")


def test_a_site_that_trusts_another_authority_refuses_the_server(server: Server, site: Path, tmp_path: Path) -> None:
    keys.init(tmp_path / "other", ["localhost"])
    server.refuses(raw(tmp_path / "other" / "ca.crt", site / "site.key", site / "site.crt"))
    (site / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(IdentityError, match="site.crt: expected a certificate by the authority of"):
        credentials.site_credentials(site)


def test_a_server_whose_certificate_expired_as_it_ran_is_refused_by_the_site(tmp_path: Path) -> None:
    folder = tmp_path / "coordinator"
    keys.init(folder, ["localhost"], days=30, now=LONG_AGO)
    pair = ((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes())
    with started(folder, grpc.ssl_server_credentials([pair])) as server:
        site = server.enrol(tmp_path / "a", "hospital-a")
        server.refuses(credentials.site_credentials(site))


def test_a_server_that_has_expired_says_so_at_its_start(tmp_path: Path) -> None:
    keys.init(tmp_path, ["localhost"], days=30, now=LONG_AGO)
    with pytest.raises(IdentityError, match=r"server.crt: expired on .*`fedpeft keys server`"):
        credentials.server_credentials(tmp_path)
    with pytest.raises(IdentityError, match="ca.crt: expected the authority's certificate: No such file"):
        credentials.server_credentials(tmp_path / "nothing")


def test_a_site_cannot_pose_as_the_server(server: Server, site: Path, tmp_path: Path) -> None:
    impostor = server.enrol(tmp_path / "b", "localhost")
    pair = ((impostor / "site.key").read_bytes(), (impostor / "site.crt").read_bytes())
    with started(server.folder, grpc.ssl_server_credentials([pair])) as posing:
        with pytest.raises(grpc.RpcError, match="unsupported certificate purpose"):
            call(posing.port, credentials.site_credentials(site))
        assert posing.greeter.calls == 0


def test_a_connection_without_tls_has_no_peer(tmp_path: Path) -> None:
    keys.init(tmp_path, ["localhost"])
    plain = grpc.server(ThreadPoolExecutor(1), handlers=(Greeter(tmp_path),))
    port = plain.add_insecure_port("127.0.0.1:0")
    plain.start()
    try:
        with (
            grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
            pytest.raises(grpc.RpcError, match="shows no certificate"),
        ):
            channel.unary_unary("/any/thing")(b"", timeout=20)
    finally:
        plain.stop(None).wait()
