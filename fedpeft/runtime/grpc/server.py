"""The server's end: sites dial in over mutual TLS, and the round loop asks them as it would in one process."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedpeft import __version__, keys
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import FedpeftError, IdentityError, Reason, RefusedError, RunError, StoppedError
from fedpeft.federation import Arrival, Event, Happening, NodeId, Watch, unwatched
from fedpeft.runtime.grpc import credentials, endpoint
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.link import Link, LinkGate, Message
from fedpeft.runtime.grpc.spool import Spool

Admit = Callable[[NodeId, pb.Hello], None]


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


@dataclass
class _Task:
    """What a node shall be answering; `reply` is the digest of its answer once that has come."""

    data: bytes
    digest: bytes
    reply: bytes = b""


@dataclass(frozen=True, eq=False)
class _Session:
    link: Link
    fingerprint: str
    done: threading.Event


class GrpcTransport:
    """A `Transport` over sites that hold one bidirectional stream each; use it as a context manager.

    Args:
        address: to listen on, "host:port"; port 0 takes a free one.
        folder: of the coordinator's keys and roster (`fedpeft.keys`).
        spool: folder for replies on their way.
        least: sites that must be connected before a round opens.
        admit: raises RefusedError for a site that cannot take part as it is.
        limits: of what is taken on at once.
        watch: told of connections.

    Raises:
        RunError: the address cannot be listened on.
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
        self._keys, self._spool = folder, Spool(spool)
        self._gate: LinkGate = Gate(self._limits.uploads)
        self._changed = threading.Condition()
        self._sessions: dict[NodeId, _Session] = {}
        self._tasks: dict[NodeId, _Task] = {}
        self._inbox: deque[tuple[NodeId, Message]] = deque()
        self._stopping = False
        self._pool = futures.ThreadPoolExecutor(self._limits.sessions, thread_name_prefix="session")
        self._server = grpc.server(
            self._pool,
            options=endpoint.options(self._limits.keepalive_s),
            maximum_concurrent_rpcs=self._limits.sessions,
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._session, request_deserializer=pb.Frame.FromString, response_serializer=pb.Frame.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(endpoint.SERVICE, {endpoint.METHOD: handler}),)
        )
        try:
            port = self._server.add_secure_port(address, credentials.server_credentials(folder))
        except RuntimeError as error:
            raise RunError(f"cannot listen on {address}: {error}") from None
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._server.start()
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()

    def nodes(self) -> Sequence[NodeId]:
        """The sites that are connected, once there are as many as a round needs.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._sessions) >= self._least)
            self._check_stopping()
            return sorted(self._sessions)

    def exchange(self, requests: Mapping[NodeId, bytes], deadline_s: float) -> Iterator[Arrival]:
        """Replies as they arrive, from whoever is connected now or comes back before the deadline.

        Raises:
            StoppedError: `stop` was called.
        """
        until = time.monotonic() + deadline_s
        self._ask(requests)
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._inbox or not self._owing(), max(0.0, until - time.monotonic())
                )
                self._check_stopping()
                if not self._inbox:
                    return
                node, message = self._inbox.popleft()
            yield Arrival(node, message.data)
            message.discard()

    def stop(self) -> None:
        """Make `nodes` and `exchange` raise StoppedError; may be called from a signal handler's thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def close(self, why: str = "the server stops", finished: bool = False) -> None:
        """Say good-bye to the sites and let go of the address."""
        self.stop()
        with self._changed:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.link.bye(why, finished=finished)
        for session in sessions:
            session.done.wait(5)
        self._server.stop(1).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "GrpcTransport":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, requests: Mapping[NodeId, bytes]) -> None:
        tasks = {node: _Task(data, hashlib.sha256(data).digest()) for node, data in requests.items()}
        with self._changed:
            arrived = {(node, message.answers) for node, message in self._inbox}
            for node, task in tasks.items():
                old = self._tasks.get(node)
                if old and old.digest == task.digest and (not old.reply or (node, task.digest) in arrived):
                    tasks[node] = old
            new = {node for node, task in tasks.items() if self._tasks.get(node) is not task}
            self._tasks = tasks
            late = [(node, m) for node, m in self._inbox if self._digest(node) != m.answers]
            self._inbox = deque((node, m) for node, m in self._inbox if self._digest(node) == m.answers)
            sessions = dict(self._sessions)
        for node, message in late:
            message.discard()
            self._tell(Happening.REFUSED, node, why=f"{Reason.LATE.value}: it came after its round was closed")
        for node, session in sessions.items():
            if session.link.answering not in (b"", self._digest(node)):
                session.link.refuse(Reason.LATE, "the round that it answers is closed")
            if node in new:
                self._send(node, session)

    def _send(self, node: NodeId, session: _Session) -> None:
        task = self._tasks.get(node)
        if task is not None and not task.reply:
            self._tell(Happening.WORKING, node, state="downloading")
            session.link.send(task.data, task.digest)

    def _digest(self, node: NodeId) -> bytes | None:
        task = self._tasks.get(node)
        return task.digest if task else None

    def _owing(self) -> bool:
        return any(not task.reply for task in self._tasks.values())

    def _check_stopping(self) -> None:
        if self._stopping:
            raise StoppedError("the server was asked to stop; the run can be taken up")

    def _session(self, frames: Iterator[pb.Frame], context: grpc.ServicerContext) -> Iterator[pb.Frame]:
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
            dropped=lambda drop: self._tell(Happening.REJECTED, node, why=f"{drop.reason}: {drop.detail}"[:500]),
        )
        session = _Session(link, fingerprint, threading.Event())
        if not context.add_callback(lambda: self._left(node, session)):
            return
        threading.Thread(target=self._listen, args=(node, session, frames), name=f"from {node}", daemon=True).start()
        yield from link.frames()
        self._left(node, session)

    def _listen(self, node: NodeId, session: _Session, frames: Iterator[pb.Frame]) -> None:
        greeted = threading.Timer(self._limits.greeting_s, lambda: session.link.bye("expected a Hello in time"))
        greeted.daemon = True
        greeted.start()
        why = "the connection was lost"
        try:
            first = next(frames)
            greeted.cancel()
            self._greet(node, session, first)
            for frame in frames:
                match frame.WhichOneof("frame"):
                    case "working":
                        state = frame.working.state if frame.working.state in ("training", "idle") else "?"
                        self._tell(Happening.WORKING, node, state=state)
                    case "bye":
                        why = frame.bye.why[:200]
                        session.link.close()
                    case _:
                        session.link.handle(frame)
        except (grpc.RpcError, StopIteration):
            pass
        except RefusedError as error:
            self._tell(Happening.REJECTED, node, why=str(error))
            session.link.bye(str(error), refused=True)
        except (FedpeftError, OSError) as error:
            why = str(error)
            session.link.bye(why)
        finally:
            greeted.cancel()
            self._left(node, session, why)

    def _greet(self, node: NodeId, session: _Session, first: pb.Frame) -> None:
        if first.WhichOneof("frame") != "hello":
            raise RefusedError(Reason.POLICY, "expected a Hello as the first frame")
        if first.hello.protocol != endpoint.PROTOCOL:
            raise RefusedError(
                Reason.POLICY,
                f"this server speaks protocol {endpoint.PROTOCOL} (fedpeft {__version__}), "
                f"the site {first.hello.protocol} (fedpeft {first.hello.version[:40]}); install the same version",
            )
        self._admit(node, first.hello)
        welcome = pb.Welcome(protocol=endpoint.PROTOCOL, version=__version__)
        with self._changed:
            if session.done.is_set() or session.link.closed:
                return
            old = self._sessions.pop(node, None)
            self._sessions[node] = session
            session.link.push(pb.Frame(welcome=welcome))
            self._changed.notify_all()
        if old is not None:
            old.link.bye("the site connected anew")
        self._tell(Happening.CONNECTED, node, version=first.hello.version[:40])
        self._send(node, session)

    def _left(self, node: NodeId, session: _Session, why: str = "the connection was lost") -> None:
        with self._changed:
            if session.done.is_set():
                return
            session.done.set()
            known = self._sessions.get(node) is session
            if known:
                del self._sessions[node]
        session.link.close()
        if known:
            self._tell(Happening.DISCONNECTED, node, why=why)

    def _wanted(self, node: NodeId, offer: pb.Offer) -> bool:
        with self._changed:
            task = self._tasks.get(node)
            if task is None or task.digest != offer.answers:
                raise RefusedError(Reason.LATE, "it answers no task that is open; its round was closed")
            if task.reply and task.reply != offer.digest:
                self._tell(Happening.ALARM, node, why="it sent two different replies to one task; the first counts")
                raise RefusedError(Reason.DUPLICATE, "another reply to this task has come already")
            if not task.reply and offer.size:
                self._tell(Happening.WORKING, node, state="uploading")
            return not task.reply

    def _received(self, node: NodeId, message: Message) -> None:
        with self._changed:
            task = self._tasks.get(node)
            if task is not None and task.digest == message.answers and not task.reply:
                task.reply = message.digest
                self._inbox.append((node, message))
                self._changed.notify_all()
                return
        message.discard()

    def _keep_house(self) -> None:
        """Once a second: let nobody stay whose certificate left the roster, and no silent upload hold its place."""
        while not self._stopping:
            time.sleep(1)
            for link in self._gate.silent(self._limits.silent_s):
                link.wait_again()
            try:
                valid = {member.fingerprint for member in keys.roster(self._keys).values()}
            except FedpeftError:
                continue
            with self._changed:
                revoked = [(n, s) for n, s in self._sessions.items() if s.fingerprint not in valid]
            for node, session in revoked:
                self._tell(Happening.REJECTED, node, why="its certificate was revoked")
                session.link.bye("the certificate was revoked", refused=True)

    def _tell(self, kind: Happening, node: NodeId = "", /, **facts: object) -> None:
        self._watch(Event(kind, node, facts=facts))
