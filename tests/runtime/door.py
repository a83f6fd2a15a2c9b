"""A coordinator and whoever knocks at its door, on loopback."""

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft import keys
from fedpeft.errors import IdentityError
from fedpeft.runtime.grpc import credentials


class Greeter(grpc.GenericRpcHandler):
    """Answers every call with the site that calls, and counts the calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        try:
            site, fingerprint = credentials.peer(context, self.folder)
        except IdentityError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return f"{site} {fingerprint}".encode()


class Server:
    """A coordinator with a roster and a gRPC server on loopback."""

    def __init__(self, folder: Path, shown: grpc.ServerCredentials | None) -> None:
        self.folder, self.greeter = folder, Greeter(folder)
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=(self.greeter,))
        self.port, self.other_port = (
            self._server.add_secure_port("127.0.0.1:0", shown or credentials.server_credentials(folder))
            for _ in range(2)
        )
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def enrol(self, site: Path, name: str) -> Path:
        signed = keys.sign(self.folder, keys.request(site, name))
        keys.install(site, signed, self.folder / "ca.crt")
        return site

    def refuses(self, shown: grpc.ChannelCredentials) -> None:
        """No call of such a connection reaches a handler."""
        before = self.greeter.calls
        with pytest.raises(grpc.RpcError) as refusal:
            call(self.port, shown)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert self.greeter.calls == before


@contextmanager
def started(folder: Path, shown: grpc.ServerCredentials | None = None) -> Iterator[Server]:
    server = Server(folder, shown)
    try:
        yield server
    finally:
        server.stop()


def call(port: int, shown: grpc.ChannelCredentials) -> str:
    with dialled(port, shown) as method:
        return method(b"", timeout=20).decode()


@contextmanager
def dialled(port: int, shown: grpc.ChannelCredentials) -> Iterator[Callable[..., bytes]]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
    with grpc.secure_channel(f"localhost:{port}", shown, options=options) as channel:
        yield channel.unary_unary("/any/thing")


def raw(ca: Path, key: Path | None = None, certificate: Path | None = None) -> grpc.ChannelCredentials:
    """Credentials of somebody who checks nothing first."""
    return grpc.ssl_channel_credentials(
        ca.read_bytes(), key and key.read_bytes(), certificate and certificate.read_bytes()
    )


def forged(
    path: Path, subject: str, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey, chain: bytes = b""
) -> tuple[Path, Path]:
    """A key and a certificate that somebody signed who is no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(f"CN={subject}"))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (path / "forged.key").write_bytes(text)
    (path / "forged.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM) + chain)
    return path / "forged.key", path / "forged.crt"


def self_made(name: str) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    return x509.Name.from_rfc4514_string(f"CN={name}"), ec.generate_private_key(ec.SECP256R1())


class Relay:
    """Carries bytes to a port of loopback until it is told to cut."""

    def __init__(self, port: int) -> None:
        self._to, self.connections = port, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Break what is open now."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self.connections += 1
                self._open += [near, far]
                threading.Thread(target=self._carry, args=([near, far],), daemon=True).start()

    def _carry(self, ends: Sequence[socket.socket]) -> None:
        near, far = ends
        with near, far, suppress(OSError):
            while True:
                for one in select.select(ends, [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    (far if one is near else near).sendall(data)


def handshake(
    port: int, context: ssl.SSLContext, ticket: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None, bool]:
    """What the server says first, the ticket it gives, and whether it resumed the session of another ticket."""
    try:
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", port)), server_hostname="localhost", session=ticket
        ) as one:
            one.settimeout(20)
            return one.recv(100), one.session, bool(one.session_reused)
    except (ssl.SSLError, ConnectionError):
        return b"", None, False
