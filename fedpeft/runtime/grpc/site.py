"""The site's end: it dials out, keeps one stream for months, and never does the same work twice."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import grpc

from fedpeft import __version__
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import IdentityError, PayloadError, RunError
from fedpeft.federation import Handler, Parcel
from fedpeft.runtime.grpc import credentials, endpoint
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.link import Link, LinkGate, Message
from fedpeft.runtime.grpc.spool import Spool

Say = Callable[[str], None]

_GOOD_BYE_S = 5.0  # that the server has to take it


@dataclass(frozen=True)
class Dialling:
    """How a site reaches its server.

    Args:
        server: "host:port".
        keys: folder with ca.crt, site.crt and site.key.
        server_name: name in the server's certificate, where it is not the host.
        first_wait_s: seconds before the second attempt; each further wait is up to twice as long.
        longest_wait_s: seconds that a wait never exceeds.
        keepalive_s: seconds of silence after which the server is asked whether it lives.
    """

    server: str
    keys: Path
    server_name: str = ""
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    keepalive_s: float = 20.0


class Ending(Enum):
    """Why `Site.run` returned."""

    FINISHED = "the run is over"
    STOPPED = "the site was asked to stop"


class Site:
    """Serves a handler to a server that the site itself dials.

    Args:
        dialling: where and how.
        handler: makes a reply of a task; called on one thread, one task at a time.
        hello: what the site says of itself.
        spool: folder for tasks on their way.
        largest_task: bytes of the largest task that is taken.
        stay: keep dialling when a run is over, for the next one.
        say: told what happens, a line each.
    """

    def __init__(
        self,
        dialling: Dialling,
        handler: Handler,
        hello: pb.Hello,
        spool: Path,
        largest_task: int = 1 << 30,
        stay: bool = True,
        say: Say = lambda text: None,
    ) -> None:
        self._dialling, self._handler, self._stay, self._say = dialling, handler, stay, say
        self._hello, self._spool, self._largest = hello, Spool(spool), largest_task
        hello.protocol, hello.version = endpoint.PROTOCOL, __version__
        self._gate: LinkGate = Gate(1)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._link: Link | None = None
        self._call: grpc.CallIterator[pb.Frame] | None = None
        self._task: Message | None = None
        self._working: bytes = b""
        self._replied: tuple[bytes, Parcel] | None = None  # digest of the task, and the reply
        self._broken: BaseException | None = None

    def run(self) -> Ending:
        """Dial, serve, dial again; returns when the run is over (unless it stays) or `stop` was called.

        Raises:
            IdentityError: the keys cannot be used; where a certificate expires later, a new one is awaited.
            RunError: the server says that this site may not take part as it is.
            Exception: what the handler raised.
        """
        credentials.site_credentials(self._dialling.keys)
        worker = threading.Thread(target=self._work, name="worker", daemon=True)
        worker.start()
        failed = 0
        try:
            while not self._stop.is_set():
                greeted, bye = self._session()
                if bye is not None and bye.refused:
                    raise RunError(f"the server refuses this site: {bye.why}")
                if bye is not None and bye.finished and not self._stay:
                    return Ending.FINISHED
                failed = 0 if greeted else failed + 1
                longest = min(self._dialling.longest_wait_s, self._dialling.first_wait_s * 2.0 ** min(failed, 30))
                self._stop.wait(random.uniform(0, longest))  # noqa: S311 - spreads the sites' returns, decides nothing
            if self._broken is not None:
                raise self._broken
            return Ending.STOPPED
        finally:
            self._stop.set()
            with self._changed:
                self._changed.notify_all()
            worker.join()

    def stop(self) -> None:
        """Say good-bye, let the task at hand be finished and kept, and make `run` return.

        It waits a few seconds for a server that does not take the good-bye.
        """
        self._stop.set()
        with self._changed:
            call = self._call
            self._changed.notify_all()
            if self._link is not None:
                self._link.bye("the site stops")
                self._changed.wait_for(lambda: self._call is not call, _GOOD_BYE_S)
        if call is not None:
            call.cancel()  # type: ignore[no-untyped-call]

    def _session(self) -> tuple[bool, pb.Bye | None]:
        """One connection, from dialling to its end: whether the server let us in, and its good-bye."""
        d = self._dialling
        options = endpoint.options(d.keepalive_s)
        if d.server_name:
            options.append(("grpc.ssl_target_name_override", d.server_name))
        greeted, bye = False, None
        try:
            trusted = credentials.site_credentials(d.keys)
        except IdentityError as error:
            self._say(f"not dialling: {error}")
            return greeted, bye
        link = Link(
            "server",
            self._spool,
            self._gate,
            self._largest,
            wanted=self._wanted,
            received=self._received,
            refused=lambda error: self._say(f"a task is not taken: {error}"),
            dropped=self._dropped,
            kept=self._kept,
        )
        with grpc.secure_channel(d.server, trusted, options=options) as channel:
            method = channel.stream_stream(endpoint.PATH, bytes, pb.Frame.FromString)
            link.push(pb.Frame(hello=self._hello))
            call = method(link.frames())
            with self._changed:
                self._call = call
                if self._stop.is_set():
                    call.cancel()  # type: ignore[no-untyped-call]
            try:
                for frame in call:
                    match frame.WhichOneof("frame"):
                        case "welcome":
                            greeted = True
                            self._welcomed(link, frame.welcome)
                        case "bye":
                            bye = frame.bye
                            self._say(f"the server says good-bye: {bye.why}")
                            link.close()
                        case _:
                            link.handle(frame)
                    del frame
            except grpc.RpcError as error:
                if not self._stop.is_set():
                    hint = "" if greeted else " (or the coordinator's roster does not hold this site's certificate)"
                    self._say(f"no connection to {d.server}: {_details(error)}{hint}")
            except (PayloadError, OSError) as error:
                self._say(f"the connection is given up: {error}")
            finally:
                with self._changed:
                    self._link = self._call = None
                    self._changed.notify_all()
                link.close()
                call.cancel()  # type: ignore[no-untyped-call]
        return greeted, bye

    def _welcomed(self, link: Link, welcome: pb.Welcome) -> None:
        self._say(f"connected to {self._dialling.server}, fedpeft {welcome.version}")
        with self._changed:
            self._link = link
            state = "training" if self._working else "idle"
        link.push(pb.Frame(working=pb.Working(state=state)))

    def _wanted(self, offer: pb.Offer) -> bool:
        """A task is new, or at hand, or answered and the reply has not come through, which is sent again."""
        with self._changed:
            link, replied = self._link, self._replied
            known = offer.digest == self._working or (self._task is not None and offer.digest == self._task.digest)
        if known:
            return False
        if replied is not None and replied[0] == offer.digest and link is not None:
            link.send(replied[1], answers=offer.digest)
            return False
        return True

    def _received(self, message: Message) -> None:
        with self._changed:
            old, self._task = self._task, message
            self._changed.notify_all()
        if old is not None:
            old.discard()

    def _kept(self, digest: bytes) -> None:
        """The server has the reply: should it ask again, the client shall say anew what it says."""
        with self._changed:
            if self._replied is not None and self._replied[1].digest == digest:
                self._replied = None

    def _dropped(self, drop: pb.Drop) -> None:
        self._say(f"the server does not take the reply: {drop.reason}: {drop.detail}")

    def _work(self) -> None:
        try:
            self._answer()
        except BaseException as error:
            self._broken = error
            self.stop()

    def _answer(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._task is not None or self._stop.is_set())
                if self._stop.is_set() or self._task is None:
                    return
                task, self._task = self._task, None
                self._working, self._replied = task.digest, None
            self._show("training")
            reply = Parcel.of(self._handler(bytes(task.data)))
            task.discard()
            with self._changed:
                self._working, self._replied = b"", (task.digest, reply)
                link = self._link if self._task is None else None
            self._show("idle")
            if link is not None:
                link.send(reply, answers=task.digest)

    def _show(self, state: str) -> None:
        with self._changed:
            link = self._link
        if link is not None:
            link.push(pb.Frame(working=pb.Working(state=state)))


def _details(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", lambda: None)(), getattr(error, "details", lambda: "")()
    return f"{code.name if code else 'error'}: {str(details or error)[:300]}"
