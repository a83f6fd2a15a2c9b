"""The server's end: sites dial in over mutual TLS, and the round loop asks them as it would in one process."""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from fedpeft import __version__, keys
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import (
    FedpeftError,
    IdentityError,
    Reason,
    RefusedError,
    RunError,
    StoppedError,
)
from fedpeft.federation import Arrival, Event, Happening, NodeId, Parcel, Watch, unwatched
from fedpeft.runtime.grpc import credentials, endpoint
from fedpeft.runtime.grpc.desk import Desk
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.link import Link, LinkGate, Message
from fedpeft.runtime.grpc.session import GOOD_BYE_S, Session
from fedpeft.runtime.grpc.spool import Spool

Admit = Callable[[NodeId, pb.Hello], None]

_AT_ONCE = 8  # connections of one site: the living one, and some that have not been found dead yet


@dataclass(frozen=True)
class Limits:
    """What the server's end takes on at once.

    Args:
        sessions: connections, those that are not known yet included; more are turned away.
        uploads: large replies that come in at once; the others wait their turn.
        largest_reply: bytes.
        greeting_s: seconds that a new connection has to say who it is.
        silent_s: seconds after which a silent upload lets others go first.
        keepalive_s: seconds of silence after which a site is asked whether it lives.
    """

    sessions: int = 1000
    uploads: int = 4
    largest_reply: int = 1 << 30
    greeting_s: float = 30.0
    silent_s: float = 15.0
    keepalive_s: float = 20.0


class GrpcTransport:
    """A `Transport` over sites that hold one bidirectional stream each; as a context manager it starts and closes.

    Args:
        address: to listen on, "host:port"; port 0 takes a free one.
        folder: of the coordinator's keys and roster (`fedpeft.keys`).
        spool: folder for replies on their way.
        least: sites that must be connected before a round opens.
        admit: raises RefusedError for a site that cannot take part as it is.
        limits: of what is taken on at once.
        watch: told of connections.

    Raises:
        IdentityError: the keys cannot be used.
    """

    def __init__(
        self,
        address: str,
        folder: Path,
        spool: Path,
        least: int = 1,
        admit: Admit = lambda node, hello: None,
        limits: Limits | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self._limits, self._least, self._admit, self._watch = limits or Limits(), least, admit, watch
        self._keys, self._roster, self._spool = folder, keys.Roster(folder), Spool(spool)
        self._gate: LinkGate = Gate(self._limits.uploads)
        self._changed = threading.Condition()
        self._open: set[Session] = set()
        self._sessions: dict[NodeId, Session] = {}
        self._desk = Desk()
        self._stopping = False
        self._over = ""
        self._told: set[NodeId] = set()
        self._pool = futures.ThreadPoolExecutor(self._limits.sessions, thread_name_prefix="session")
        self._server = grpc.server(
            self._pool,
            options=endpoint.options(self._limits.keepalive_s),
            maximum_concurrent_rpcs=self._limits.sessions,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._session, request_deserializer=pb.Frame.FromString)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(endpoint.SERVICE, {endpoint.METHOD: handler}),)
        )
        self.address = address
        self._credentials = credentials.server_credentials(folder)
        self._house = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Listen; `address` is then the one that sites can dial.

        Raises:
            RunError: the address cannot be listened on.
        """
        try:
            port = self._server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise RunError(f"cannot listen on {self.address}: {error}") from None
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._server.start()
        self._house.start()

    def nodes(self) -> Sequence[NodeId]:
        """The sites that are connected, once there are as many as a round needs.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._changed:
            here = len(self._sessions)
        if here < self._least:
            self._tell(Happening.WAITING, connected=here, needed=self._least)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._sessions) >= self._least)
            self._check_stopping()
            return sorted(self._sessions)

    def exchange(self, requests: Mapping[NodeId, Parcel], deadline_s: float) -> Iterator[Arrival]:
        """Replies as they arrive, from whoever is connected now or comes back before the deadline.

        Raises:
            StoppedError: `stop` was called.
        """
        until = time.monotonic() + deadline_s
        self._ask(requests)
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._desk.holds() or not self._desk.owing(),
                    max(0.0, until - time.monotonic()),
                )
                self._check_stopping()
                answer = self._desk.next()
            if answer is None:
                return
            node, message = answer
            try:
                yield Arrival(node, message.data)
            finally:
                message.discard()

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)
            self._check_stopping()

    def stop(self) -> None:
        """Make `nodes`, `exchange` and `pause` raise StoppedError; may be called from a signal handler's thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def farewell(self, nodes: Collection[NodeId], why: str, longest_s: float) -> None:
        """Tell sites that the run is over: those that are here, and of `nodes` who comes back within a while."""
        with self._changed:
            self._over = why
            sessions = list(self._open)
        for session in sessions:
            session.dismiss(why, finished=True)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._told >= set(nodes), longest_s)

    def close(self, why: str = "the server stops") -> None:
        """Say good-bye to the sites and let go of the address."""
        self.stop()
        ended = self._server.stop(GOOD_BYE_S)
        with self._changed:
            sessions = list(self._open)
        for session in sessions:
            session.dismiss(why)
        ended.wait()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, GOOD_BYE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._house.join(GOOD_BYE_S)

    def __enter__(self) -> "GrpcTransport":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, requests: Mapping[NodeId, Parcel]) -> None:
        with self._changed:
            new, late = self._desk.ask(requests)
            sessions = {node: (session, self._desk.digest(node)) for node, session in self._sessions.items()}
            sent = [node for node in new if self._send(node)]
        for node, message in late:
            message.discard()
            self._tell(Happening.REFUSED, node, why=f"{Reason.LATE.value}: it came after its round was closed")
        for session, digest in sessions.values():
            session.link.close_round(digest)
        for node in sent:
            self._tell(Happening.WORKING, node, state="downloading")

    def _send(self, node: NodeId) -> bool:
        """Under the lock, so that no older task is sent after a newer: send a node what it shall be answering."""
        session, task = self._sessions.get(node), self._desk.task(node)
        if session is None or task is None:
            return False
        session.send(task)
        return True

    def _check_stopping(self) -> None:
        if self._stopping:
            raise StoppedError("the server was asked to stop; the run can be taken up")

    def _session(self, frames: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One site's stream: this generator sends, a thread of its own receives."""
        try:
            node, fingerprint = credentials.peer(context, self._keys)
        except IdentityError as error:
            self._tell(Happening.REJECTED, why=str(error))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        link = Link(
            node,
            self._spool,
            self._gate,
            self._limits.largest_reply,
            wanted=lambda offer: self._wanted(node, offer),
            received=lambda message: self._received(node, message),
            refused=lambda error: self._tell(Happening.REFUSED, node, why=str(error)),
            dropped=lambda drop: self._tell(Happening.REJECTED, node, why=f"{drop.reason}: {drop.detail}"[:500]),
        )
        session = Session(
            node,
            fingerprint,
            link,
            hang_up=context.cancel,
            greeted=self._greeted,
            works=lambda state: self._tell(Happening.WORKING, node, state=state),
        )
        with self._changed:
            crowded = sum(other.node == node for other in self._open) >= _AT_ONCE
            if not crowded:
                self._open.add(session)
        if crowded:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{node} has {_AT_ONCE} connections already")
        if not context.add_callback(link.close):
            link.close()
        threading.Thread(target=self._listen, args=(session, frames), name=f"from {node}", daemon=True).start()
        yield from link.frames()

    def _listen(self, session: Session, frames: Iterator[pb.Frame]) -> None:
        try:
            session.listen(frames, self._limits.greeting_s)
        except RefusedError as error:
            self._tell(Happening.REJECTED, session.node, why=str(error))
        finally:
            self._left(session)

    def _greeted(self, session: Session, hello: pb.Hello) -> None:
        node = session.node
        self._admit(node, hello)
        if self._over:
            session.dismiss(self._over, finished=True)
        with self._changed:
            if session.link.closed:
                return
            old, self._sessions[node] = self._sessions.get(node), session
            session.link.push(pb.Frame(welcome=pb.Welcome(protocol=endpoint.PROTOCOL, version=__version__)))
            sent = self._send(node)
            self._changed.notify_all()
        if old is not None:
            old.dismiss("the site connected anew")
        self._tell(Happening.CONNECTED, node, version=hello.version[:40])
        if sent:
            self._tell(Happening.WORKING, node, state="downloading")

    def _left(self, session: Session) -> None:
        with self._changed:
            self._open.discard(session)
            known = self._sessions.get(session.node) is session
            if known:
                del self._sessions[session.node]
            if session.heard:
                self._told.add(session.node)
            self._changed.notify_all()
        if known:
            self._tell(Happening.DISCONNECTED, session.node, why=session.why)

    def _wanted(self, node: NodeId, offer: pb.Offer) -> bool:
        with self._changed:
            came = self._desk.came(node, offer)
        if came and came != offer.digest:
            self._tell(Happening.ALARM, node, why="it sent two different replies to one task; the first counts")
            raise RefusedError(Reason.DUPLICATE, "another reply to this task has come already")
        if not came and offer.size:
            self._tell(Happening.WORKING, node, state="uploading")
        return not came

    def _received(self, node: NodeId, message: Message) -> None:
        with self._changed:
            taken = self._desk.put(node, message)
            if taken:
                self._changed.notify_all()
        if not taken:
            message.discard()

    def _keep_house(self) -> None:
        """Once a second: no silent upload holds its place, nobody stays who is closed or left the roster."""
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, 1)
                sessions = list(self._open)
            self._gate.rotate(self._limits.silent_s)
            for session in sessions:
                session.hang_up_if_deaf()
            self._shut_out(sessions)

    def _shut_out(self, sessions: Sequence[Session]) -> None:
        """End the sessions of those whose certificate has expired or left the roster."""
        try:
            any((self._keys / "roster").iterdir())
            members = self._roster.members()
        except (FedpeftError, OSError) as error:
            self._tell(Happening.ALARM, why=f"the roster cannot be read: {error}")
            return
        for session in sessions:
            member = members.get(session.node)
            if session.link.closed:
                continue
            if member is None or member.fingerprint != session.fingerprint:
                self._tell(Happening.REJECTED, session.node, why="its certificate was revoked")
                session.dismiss("the certificate was revoked", refused=True)
            elif member.not_after <= datetime.now(UTC):
                self._tell(Happening.REJECTED, session.node, why="its certificate has expired")
                session.dismiss("the certificate has expired")

    def _tell(self, kind: Happening, node: NodeId = "", /, **facts: object) -> None:
        self._watch(Event(kind, node, facts=facts))
