"""What a peer answers over gRPC: nobody who is not on the roster, nothing too large, not too many at once."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import TypeVar

import grpc

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import FedpeftError, IdentityError, Reason, RefusedError, RunError
from fedpeft.peers.answering import answer
from fedpeft.peers.peer import Peer
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.dialling import greeted
from fedpeft.runtime.peer.limits import SERVICE, STREAMS, Limits
from fedpeft.runtime.peer.trust import Trust

_log = logging.getLogger(__name__)

_AT_ONCE = 16  # and two for each member
_OF_ONE = 3  # calls of one member at once: what it asks, what it pushes, and one that it has given up
_ONES = ("Heads", "Push", "Proof")
_CLOSING_S = 2.0
_M = TypeVar("_M")


class Service:
    """The server's end of a peer's lines.

    gRPC waits on a thread for the request of a unary call before anybody is asked who is calling. So every call is
    served as a stream, of which one message is read once it is clear who calls and when that ends. A member has one
    call at once where half the room is taken, which leaves some of it while fewer than a third of the members lie.

    Args:
        peer: that answers.
        trust: who may ask.
        contacts: told of who asked.
        greeting: what is answered to Hello.
        address: to listen on, "host:port"; port 0 takes a free one.
        heard: called after each call that may have brought something new.
        limits: of calls.

    Raises:
        RunError: the address cannot be listened on.
    """

    def __init__(
        self,
        peer: Peer,
        trust: Trust,
        contacts: Contacts,
        greeting: Callable[[], pb.Greeting],
        address: str,
        heard: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._peer, self._trust, self._contacts, self._greeting = peer, trust, contacts, greeting
        self._heard, self._limits = heard, limits
        self._busy: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._room = _AT_ONCE + 2 * len(trust.others())
        self._pool = futures.ThreadPoolExecutor(self._room, thread_name_prefix="answer")
        options = [*limits.options(), ("grpc.max_concurrent_streams", 2 * _OF_ONE)]
        self._server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=self._room)
        one, many = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers = {name: one(self._one(name)) for name in _ONES} | {name: many(self._many(name)) for name in STREAMS}
        handlers["Hello"] = one(self._hello, request_deserializer=pb.Greeting.FromString)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            port = self._server.add_secure_port(address, trust.credentials())
        except RuntimeError as error:
            raise RunError(f"cannot listen on {address}: {error}") from None
        self.address = f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        """Listen; `address` is then the one that others can dial."""
        self._server.start()

    def close(self) -> None:
        """Let go of the address, once what is being answered is said."""
        self._server.stop(_CLOSING_S).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _hello(self, requests: Iterator[pb.Greeting], context: grpc.ServicerContext) -> bytes:
        with self._call(context) as caller:
            greeting = _only(requests)
            self._contacts.carried(caller, 0, greeting.ByteSize())
            if greeting.run != self._peer.terms.run:
                raise RefusedError(Reason.OTHER_RUN, "it is of another run")
            greeted(self._trust, self._contacts, caller, greeting)
            reply = self._greeting().SerializeToString()
            self._contacts.carried(caller, len(reply), 0)
            return reply

    def _one(self, method: str) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            with self._call(context) as caller:
                reply = b"".join(self._answered(caller, method, requests))
                self._heard()
                return reply

        return handle

    def _many(self, method: str) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._call(context) as caller:
                yield from self._answered(caller, method, requests)

        return handle

    def _answered(self, caller: int, method: str, requests: Iterator[bytes]) -> Iterator[bytes]:
        request = _only(requests)
        self._contacts.carried(caller, 0, len(request))
        for reply in answer(self._peer, method, request):
            self._contacts.carried(caller, len(reply), 0)
            yield reply

    @contextmanager
    def _call(self, context: grpc.ServicerContext) -> Iterator[int]:
        """Who calls; whatever goes wrong within is the call's end, and nothing else's."""
        caller = 0
        try:
            caller = self._admitted(context)
            self._contacts.called(caller, time.monotonic())
            yield caller
        except IdentityError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except FedpeftError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error)[:500])
        except OSError as error:
            _log.error("a call is not answered: %s", error)
            context.abort(grpc.StatusCode.INTERNAL, "this peer cannot write to its disk")
        finally:
            with self._lock:
                self._busy[caller] -= caller > 0

    def _admitted(self, context: grpc.ServicerContext) -> int:
        """The member that calls.

        Raises:
            IdentityError: nobody on the roster does.
            RefusedError: it has too many calls open, or one that would never end.
        """
        left = context.time_remaining()
        if left is None or left > self._limits.longest_s + 1:
            raise RefusedError(Reason.POLICY, f"expected a deadline of at most {self._limits.longest_s:.0f} seconds")
        caller = self._trust.caller(context)
        with self._lock:
            most = _OF_ONE if self._busy.total() < self._room // 2 else 1
            if self._busy[caller] >= most:
                raise RefusedError(Reason.POLICY, f"expected at most {most} calls at once")
            self._busy[caller] += 1
        return caller


def _only(requests: Iterator[_M]) -> _M:
    """The one message of a call.

    Raises:
        RefusedError: there is none, or another.
    """
    request = next(requests, None)
    if request is None or next(requests, None) is not None:
        raise RefusedError(Reason.BAD_PAYLOAD, "expected one message")
    return request
