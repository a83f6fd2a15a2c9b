"""The lines on which a peer asks others: mutual TLS that lets nobody through but the member who is meant."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import grpc

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import UnreachableError
from fedpeft.peers.exchange import Call
from fedpeft.peers.roster import Member
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.limits import SERVICE, STREAMS, Limits
from fedpeft.runtime.peer.trust import Trust

_MOST_LINES = 64
_BROKEN = (grpc.RpcError, ValueError)  # ValueError: `Lines.close` has closed the channel


@dataclass(frozen=True)
class _Line:
    channel: grpc.Channel
    address: str
    trusted: bytes


class Lines:
    """Open lines to members, made when they are needed; any thread may call, and close them.

    Args:
        trust: who the members are.
        contacts: where they are, and what becomes of calls.
        greeting: what is said first on a new line.
        limits: of calls.
    """

    def __init__(self, trust: Trust, contacts: Contacts, greeting: Callable[[], pb.Greeting], limits: Limits) -> None:
        self._trust, self._contacts, self._greeting, self._limits = trust, contacts, greeting, limits
        self._open: OrderedDict[int, _Line] = OrderedDict()
        self._lock = threading.Lock()
        self._dialled: set[grpc.Channel] = set()
        self._closed = False

    def call(self, number: int) -> Call:
        """What `fedpeft.peers.exchange.exchange` asks a member through, once: the time for it begins now.

        The call raises UnreachableError where no answer comes, or the time is over.
        """
        until = time.monotonic() + self._limits.exchange_s

        def ask(method: str, request: bytes) -> Iterable[bytes]:
            line, left = self._line(number), until - time.monotonic()
            if left <= 0:
                raise self._failed(number, line, method, TimeoutError("the exchange takes too long"))
            seconds = min(left, self._limits.seconds(method, request))
            if method in STREAMS:
                return self._stream(number, line, method, request, seconds)
            return [self._unary(number, line, method, request, seconds)]

        return ask

    def push(self, numbers: Collection[int], batch: bytes) -> set[int]:
        """Give members a batch, all at once; who took it. Nobody is waited for longer than a deadline."""
        futures: dict[int, tuple[_Line, grpc.CallFuture[bytes]]] = {}
        for number in numbers:
            with suppress(UnreachableError, ValueError):
                line = self._line(number)
                method = line.channel.unary_unary(f"/{SERVICE}/Push", bytes, bytes)
                futures[number] = line, method.future(batch, timeout=self._limits.seconds("Push", batch))
        taken = set()
        for number, (line, future) in futures.items():
            try:
                reply = future.result()
            except grpc.RpcError as error:
                self._failed(number, line, "Push", error)
            else:
                self._contacts.carried(number, len(batch), len(reply))
                self._contacts.reached(number, time.monotonic())
                taken.add(number)
        return taken

    def close(self) -> None:
        """Hang up, for good."""
        with self._lock:
            self._closed = True
            channels, self._open = [line.channel for line in self._open.values()], OrderedDict()
            channels += self._dialled
        for channel in channels:
            channel.close()

    def _line(self, number: int) -> _Line:
        """The open line to a member, or a new one to where it answers first.

        Raises:
            UnreachableError: it answers nowhere, or nobody is known by that number.
        """
        trusted = self._trust.certificates(number)
        with self._lock:
            line = self._open.get(number)
            if line is not None and line.trusted == trusted:
                self._open.move_to_end(number)
                return line
        self._drop(number)
        member = self._trust.others().get(number)
        if member is None or not trusted or self._closed:
            raise UnreachableError(f"peer {number} is not on the roster, or this peer stops")
        why = "it has no address"
        for address in self._contacts.addresses(member):
            try:
                return self._dial(member, address, trusted)
            except UnreachableError as error:
                why = str(error)
        self._contacts.missed(number, time.monotonic(), why)
        raise UnreachableError(f"{member.name!r} is not reached: {why}")

    def _dial(self, member: Member, address: str, trusted: bytes) -> _Line:
        shown = grpc.ssl_channel_credentials(trusted, *self._trust.pair)
        options = [*self._limits.options(), ("grpc.ssl_target_name_override", member.name)]
        line = _Line(grpc.secure_channel(address, shown, options=options), address, trusted)
        try:
            with self._lock:
                self._dialled.add(line.channel)
                if self._closed:
                    raise UnreachableError("this peer stops")
            self._greet(member, line)
            return self._opened(member.number, line)
        except BaseException:
            line.channel.close()
            raise
        finally:
            with self._lock:
                self._dialled.discard(line.channel)

    def _greet(self, member: Member, line: _Line) -> None:
        request = self._greeting().SerializeToString()
        try:
            method = line.channel.unary_unary(f"/{SERVICE}/Hello", bytes, pb.Greeting.FromString)
            reply = method(request, timeout=self._limits.deadline_s)
        except _BROKEN as error:
            raise UnreachableError(f"{line.address}: {_why(error)}") from None
        if reply.peer != member.number:
            raise UnreachableError(f"{line.address}: it calls itself peer {reply.peer}")
        self._contacts.carried(member.number, len(request), reply.ByteSize())
        self._contacts.reached(member.number, time.monotonic(), line.address)
        greeted(self._trust, self._contacts, member.number, reply)

    def _opened(self, number: int, line: _Line) -> _Line:
        """The line to a member from now on: this one, or another that a second thread has opened meanwhile."""
        with self._lock:
            if self._closed:
                raise UnreachableError("this peer stops")
            kept = self._open.setdefault(number, line)
            superfluous = line if kept is not line else None
            if len(self._open) > _MOST_LINES:
                superfluous = self._open.popitem(last=False)[1]
        if superfluous is not None:
            superfluous.channel.close()
        return kept

    def _unary(self, number: int, line: _Line, method: str, request: bytes, seconds: float) -> bytes:
        try:
            ask = line.channel.unary_unary(f"/{SERVICE}/{method}", bytes, bytes)
            reply: bytes = ask(request, timeout=seconds)
        except _BROKEN as error:
            raise self._failed(number, line, method, error) from None
        self._contacts.carried(number, len(request), len(reply))
        self._contacts.reached(number, time.monotonic())
        return reply

    def _stream(self, number: int, line: _Line, method: str, request: bytes, seconds: float) -> Iterator[bytes]:
        ask, call = line.channel.unary_stream(f"/{SERVICE}/{method}", bytes, bytes), None
        try:
            call = ask(request, timeout=seconds)
            self._contacts.carried(number, len(request), 0)
            for reply in call:
                self._contacts.carried(number, 0, len(reply))
                yield reply
        except _BROKEN as error:
            raise self._failed(number, line, method, error) from None
        finally:
            if call is not None:
                call.cancel()  # type: ignore[no-untyped-call]

    def _failed(self, number: int, line: _Line, method: str, error: Exception) -> UnreachableError:
        """A call failed: where the member itself refused, its line stays."""
        why = f"{method}: {_why(error)}"
        refused = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED)
        if getattr(error, "code", lambda: None)() not in refused:
            self._drop(number, line)
        self._contacts.missed(number, time.monotonic(), why)
        return UnreachableError(why)

    def _drop(self, number: int, line: _Line | None = None) -> None:
        with self._lock:
            held = self._open.get(number)
            if held is None or (line is not None and held is not line):
                return
            del self._open[number]
        held.channel.close()


def greeted(trust: Trust, contacts: Contacts, speaker: int, greeting: pb.Greeting) -> None:
    """Note where a member says that it and others are."""
    others = trust.others()
    if speaker in others and greeting.address:
        contacts.hint(speaker, greeting.address)
    for number in others:
        if number != speaker and number in greeting.known:
            contacts.hint(number, greeting.known[number])


def _why(error: Exception) -> str:
    code, details = getattr(error, "code", lambda: None)(), getattr(error, "details", lambda: "")()
    return f"{code.name if code else 'error'}: {str(details or error)[:300]}"
