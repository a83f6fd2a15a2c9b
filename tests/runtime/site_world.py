"""Sites and a server over real mutual TLS on loopback, without a model; a client that keeps to no rule; a bad line."""

import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc

from fedpeft import keys
from fedpeft._proto import federation_pb2 as fpb
from fedpeft._proto import session_pb2 as pb
from fedpeft.federation import Event, Handler, messages
from fedpeft.runtime.grpc import credentials, endpoint
from fedpeft.runtime.grpc.server import GrpcTransport
from fedpeft.runtime.grpc.site import Dialling, Ending, Site
from fedpeft.runtime.grpc.spool import PIECE

NAMES = ("ann", "bob", "cat")
SECONDS = 20.0  # that a test waits for what must happen


def make_keys(folder: Path) -> Path:
    keys.init(folder / "server", ["localhost", "127.0.0.1"])
    for name in NAMES:
        enrol(folder, name)
    return folder


def enrol(folder: Path, name: str) -> None:
    signed = keys.sign(folder / "server", keys.request(folder / name, name))
    keys.install(folder / name, signed, folder / "server" / "ca.crt")


def wait_until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.005)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Seen:
    """A watch that remembers; `then` is what it does at the first event of a kind."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.then: dict[str, Callable[[], None]] = {}

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.then.pop(event.kind, lambda: None)()

    def of(self, kind: str, node: str | None = None) -> list[Event]:
        return [event for event in list(self.events) if event.kind == kind and node in (None, event.node)]

    def whys(self, kind: str, node: str | None = None) -> list[str]:
        return [str(event.facts["why"]) for event in self.of(kind, node)]

    def wait(self, kind: str, node: str | None = None, times: int = 1) -> Event:
        wait_until(lambda: len(self.of(kind, node)) >= times)
        return self.of(kind, node)[times - 1]


@contextmanager
def listening(keyring: Path, folder: Path, **options: Any) -> Iterator[GrpcTransport]:
    """A transport on a free port; nothing of it is left behind."""
    options.setdefault("least", 0)
    with GrpcTransport(options.pop("address", "127.0.0.1:0"), keyring / "server", folder, **options) as transport:
        yield transport
    mine = ("from ", "session", "housekeeping")
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(mine)])
    assert not transport._open
    assert not transport._sessions
    assert not transport._gate._inside
    assert not transport._gate._waiting


class Running:
    """A site at work on a thread."""

    def __init__(
        self, address: str, keys: Path, handler: Handler, spool: Path, stay: bool = True, **options: Any
    ) -> None:
        self.said: list[str] = []
        self.ending: Ending | None = None
        self.error: BaseException | None = None
        dialling = Dialling(address, keys, first_wait_s=0.02, longest_wait_s=0.2)
        self.site = Site(dialling, handler, pb.Hello(), spool, stay=stay, say=self.said.append, **options)
        self._thread = threading.Thread(target=self._run, name=f"site {keys.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.ending = self.site.run()
        except BaseException as error:
            self.error = error

    def ended(self) -> bool:
        self._thread.join(SECONDS)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.site.stop()
        assert self.ended(), "the site does not stop"


class Raw:
    """A site that says whatever a test makes it say.

    Args:
        address: of the server.
        keys: folder of the site.
        hello: greet at once, and wait for the welcome.
        reads: take in what the server says.
    """

    def __init__(self, address: str, keys: Path, hello: bool = True, reads: bool = True) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 2 << 20)]
        self._channel = grpc.secure_channel(address, credentials.site_credentials(keys), options)
        self._out: queue.SimpleQueue[pb.Frame | bytes | None] = queue.SimpleQueue()
        method = self._channel.stream_stream(
            endpoint.PATH,
            request_serializer=lambda frame: frame if isinstance(frame, bytes) else frame.SerializeToString(),
            response_deserializer=pb.Frame.FromString,
        )
        self.call = method(iter(self._out.get, None))
        self.heard: queue.SimpleQueue[pb.Frame | None] = queue.SimpleQueue()
        self.error: grpc.RpcError | None = None
        self.passed: list[str | None] = []
        if reads:
            threading.Thread(target=self._read, daemon=True).start()
        if hello:
            self.say(pb.Frame(hello=pb.Hello(protocol=endpoint.PROTOCOL, version="0")))
        if hello and reads:
            self.hear("welcome")

    def _read(self) -> None:
        try:
            for frame in self.call:
                self.heard.put(frame)
        except grpc.RpcError as error:
            self.error = error
        self.heard.put(None)

    def say(self, *frames: pb.Frame | bytes) -> None:
        for frame in frames:
            self._out.put(frame)

    def hear(self, kind: str) -> Any:
        """The next frame of a kind; others before it are passed over, and `passed` says which."""
        until = time.monotonic() + SECONDS
        while True:
            frame = self.heard.get(timeout=max(0.01, until - time.monotonic()))
            assert frame is not None, f"the stream ended before a {kind}: {self.error}"
            if frame.WhichOneof("frame") == kind:
                return getattr(frame, kind)
            self.passed.append(frame.WhichOneof("frame"))

    def task(self) -> pb.Offer:
        """The next task that is offered, taken if it is small."""
        offer: pb.Offer = self.hear("offer")
        self.say(pb.Frame(kept=pb.Kept(digest=offer.digest, offset=offer.size)))
        return offer

    def offer(self, data: bytes, answers: bytes, **changes: Any) -> None:
        facts = {"digest": digest(data), "size": len(data), "answers": answers, "data": data if small(data) else b""}
        self.say(pb.Frame(offer=pb.Offer(**(facts | changes))))

    def chunk(self, data: bytes, offset: int) -> None:
        piece = data[offset : offset + PIECE]
        self.say(pb.Frame(chunk=pb.Chunk(digest=digest(data), offset=offset, data=piece)))

    def upload(self, data: bytes, offset: int) -> None:
        """Send a message from an offset on, and again from where the server asks for it, until it is kept."""
        while True:
            for at in range(offset, len(data), PIECE):
                self.chunk(data, at)
            while True:
                frame = self.heard.get(timeout=SECONDS)
                assert frame is not None, f"the stream ended: {self.error}"
                if frame.WhichOneof("frame") == "take":
                    offset = frame.take.offset
                    break
                if frame.kept.offset == len(data):
                    return

    def status(self) -> grpc.StatusCode:
        """How the stream ended."""
        wait_until(lambda: self.call.code() is not None if self.error or not self.call.is_active() else False)
        return self.call.code()

    def close(self) -> None:
        self._out.put(None)
        self.call.cancel()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def update(data: bytes) -> bytes:
    """A reply that a site keeps until the next task: one with an update."""
    return messages.join(fpb.Reply(update=fpb.Update(weight=1.0)), data)


def small(data: bytes) -> bool:
    return len(data) <= 1 << 16


class BadLine:
    """A TCP line to a server that a test can cut, or that cuts itself after so many bytes towards the server.

    Args:
        address: of the server.
        cut_after: bytes of one connection; 0: it holds.
    """

    def __init__(self, address: str, cut_after: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._to, self.cut_after = (host, int(port)), cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections, self.up_bytes = 0, 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        wait_until(lambda: not self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                site, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._carry, args=(site,), daemon=True).start()

    def _carry(self, site: socket.socket) -> None:
        with suppress(OSError), site, socket.create_connection(self._to) as server:
            self._open |= {site, server}
            down = threading.Thread(target=self._pump, args=(server, site, 0), daemon=True)
            down.start()
            try:
                self.up_bytes += self._pump(site, server, self.cut_after)
                down.join()
            finally:
                self._open -= {site, server}

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int) -> int:
        carried = 0
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and not (limit and carried >= limit):
                sink.sendall(data)
                carried += len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return carried
