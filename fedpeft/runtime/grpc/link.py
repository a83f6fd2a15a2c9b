"""One end of a session: whole messages over a stream of frames, in pieces that are acknowledged and resumed."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.spool import Incoming, Spool

PIECE = 1 << 20
WINDOW = 8 << 20  # bytes sent ahead of what the other end has kept
SMALL = 1 << 16  # a message of so many bytes goes with its offer

LinkGate: TypeAlias = "Gate[Link]"


@dataclass(frozen=True)
class Message:
    """A message that came whole.

    Args:
        digest: its SHA-256.
        answers: of a reply: digest of the task that it answers.
        data: its bytes; of a large one, a view of its file.
        file: the file, to be discarded when the message has been dealt with.
    """

    digest: bytes
    answers: bytes
    data: bytes | memoryview
    file: Incoming | None = None

    def discard(self) -> None:
        """Free what it takes on disk."""
        if self.file is not None:
            self.file.discard()


@dataclass
class _Outgoing:
    digest: bytes
    data: bytes
    sent: int = 0
    limit: int = 0


class Link:
    """Carries messages both ways; one at a time each way, a newer in place of an older.

    Frames come in on one thread (`handle`), go out on another (`frames`), and messages are sent from a third.

    Args:
        peer: whom it is with.
        spool: where large messages grow.
        gate: how many links may receive a large message at once.
        largest: bytes of the largest message that this end takes.
        wanted: raises RefusedError for a message that is not wanted; returns False for one that is here already.
        received: is given every message that came whole.
        dropped: is told when the other end does not want what was offered.
    """

    def __init__(
        self,
        peer: str,
        spool: Spool,
        gate: LinkGate,
        largest: int,
        wanted: Callable[[pb.Offer], bool],
        received: Callable[[Message], None],
        dropped: Callable[[pb.Drop], None],
    ) -> None:
        self.peer = peer
        self._spool, self._gate, self._largest = spool, gate, largest
        self._wanted, self._received, self._dropped = wanted, received, dropped
        self._changed = threading.Condition()
        self._frames: deque[pb.Frame] = deque()
        self._out: _Outgoing | None = None
        self._offer: pb.Offer | None = None
        self._in: Incoming | None = None
        self.closed = False

    def push(self, frame: pb.Frame) -> None:
        """Send a frame."""
        with self._changed:
            self._frames.append(frame)
            self._changed.notify_all()

    def send(self, data: bytes, digest: bytes, answers: bytes = b"") -> None:
        """Offer a message, in place of one that is still on its way."""
        small = len(data) <= SMALL
        offer = pb.Offer(digest=digest, size=len(data), answers=answers, data=data if small else b"")
        with self._changed:
            self._out = None if small else _Outgoing(digest, data)
        self.push(pb.Frame(offer=offer))

    def frames(self) -> Iterator[pb.Frame]:
        """What is to be sent, until the link is closed and all is."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self.closed or self._may_send())
                if self._frames:
                    frame = self._frames.popleft()
                elif self._out is None or self.closed:
                    return
                else:
                    frame = _piece(self._out)
            yield frame

    def handle(self, frame: pb.Frame) -> None:
        """Take in a frame.

        Raises:
            PayloadError: the other end does not keep to the protocol.
        """
        match frame.WhichOneof("frame"):
            case "offer":
                self._offered(frame.offer)
            case "chunk":
                self._came(frame.chunk)
            case "take":
                self._move(frame.take.digest, start=frame.take.offset, kept=frame.take.offset)
            case "kept":
                self._move(frame.kept.digest, start=None, kept=frame.kept.offset)
            case "drop":
                self._move(frame.drop.digest, start=None, kept=None)
                self._dropped(frame.drop)
            case other:
                raise PayloadError(Defect.MALFORMED, f"expected a frame of a message under way, got {other}")

    def refuse(self, reason: Reason, detail: str) -> None:
        """Take no more of the message that is coming in, if one is."""
        offer = self._offer
        if offer is not None:
            self._end()
            self._spool.discard(self.peer)
            self._drop(offer, RefusedError(reason, detail))

    def wait_again(self) -> None:
        """Let others receive first; what has come is kept."""
        offer = self._offer
        if offer is not None:
            self._suspend()
            self._gate.enter(self, lambda: self._begin(offer))

    def bye(self, why: str, refused: bool = False, finished: bool = False) -> None:
        """Say good-bye, and close."""
        self.push(pb.Frame(bye=pb.Bye(why=why[:2000], refused=refused, finished=finished)))
        self.close()

    def close(self) -> None:
        """Send what is in the queue and no more; what has come of a message is kept on disk."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._end()

    @property
    def answering(self) -> bytes:
        """Digest of the task that the message coming in answers; b"" where none is coming."""
        offer = self._offer
        return offer.answers if offer is not None else b""

    def _offered(self, offer: pb.Offer) -> None:
        self._end()
        try:
            if offer.size > self._largest:
                detail = f"{Defect.TOO_LARGE.value}: at most {self._largest} bytes are taken, got {offer.size}"
                raise RefusedError(Reason.BAD_PAYLOAD, detail)
            if len(offer.digest) != hashlib.sha256().digest_size:
                raise RefusedError(Reason.BAD_PAYLOAD, f"expected a SHA-256, got {len(offer.digest)} bytes")
            if not self._wanted(offer):
                self._keep(offer.digest, offer.size)
            elif offer.size <= SMALL:
                if (len(offer.data), hashlib.sha256(offer.data).digest()) != (offer.size, offer.digest):
                    raise RefusedError(Reason.BAD_PAYLOAD, "the message is not what its sender announced")
                self._received(Message(offer.digest, offer.answers, offer.data))
                self._keep(offer.digest, offer.size)
            else:
                with self._changed:
                    self._offer = offer
                self._gate.enter(self, lambda: self._begin(offer))
        except RefusedError as error:
            self._drop(offer, error)

    def _begin(self, offer: pb.Offer) -> None:
        incoming = None
        with self._changed:
            if self._offer is offer and not self.closed:
                incoming = self._in = self._spool.open(self.peer, offer.digest, offer.size)
        if incoming is None:
            self._gate.leave(self)
        elif incoming.offset == offer.size:
            self._finish(offer, incoming)
        else:
            self.push(pb.Frame(take=pb.Take(digest=offer.digest, offset=incoming.offset)))

    def _came(self, chunk: pb.Chunk) -> None:
        with self._changed:
            offer, incoming = self._offer, self._in
            if offer is None or incoming is None or (chunk.digest, chunk.offset) != (offer.digest, incoming.offset):
                return  # sent before the other end knew that it is to wait, or is not wanted
            incoming.add(chunk.offset, chunk.data)
        self._gate.touch(self)
        if incoming.offset == offer.size:
            self._finish(offer, incoming)
        else:
            self._keep(offer.digest, incoming.offset)

    def _finish(self, offer: pb.Offer, incoming: Incoming) -> None:
        with self._changed:
            self._offer = self._in = None
        self._gate.leave(self)
        try:
            message = Message(offer.digest, offer.answers, incoming.whole(), incoming)
        except PayloadError as error:
            self._drop(offer, RefusedError(Reason.BAD_PAYLOAD, str(error)))
            return
        self._received(message)
        self._keep(offer.digest, offer.size)

    def _move(self, digest: bytes, start: int | None, kept: int | None) -> None:
        with self._changed:
            out = self._out
            if out is None or out.digest != digest:
                return
            if kept is None or kept >= len(out.data):
                self._out = None
            else:
                out.sent = out.sent if start is None else start
                out.limit = kept + WINDOW
            self._changed.notify_all()

    def _may_send(self) -> bool:
        return self._out is not None and self._out.sent < min(self._out.limit, len(self._out.data))

    def _suspend(self) -> None:
        with self._changed:
            incoming, self._in = self._in, None
        if incoming is not None:
            incoming.close()

    def _end(self) -> None:
        with self._changed:
            self._offer = None
        self._suspend()
        self._gate.leave(self)

    def _keep(self, digest: bytes, offset: int) -> None:
        self.push(pb.Frame(kept=pb.Kept(digest=digest, offset=offset)))

    def _drop(self, offer: pb.Offer, error: RefusedError) -> None:
        drop = pb.Drop(digest=offer.digest, reason=error.reason.value, detail=error.detail[:2000])
        self.push(pb.Frame(drop=drop))


def _piece(out: _Outgoing) -> pb.Frame:
    data = out.data[out.sent : out.sent + PIECE]
    frame = pb.Frame(chunk=pb.Chunk(digest=out.digest, offset=out.sent, data=data))
    out.sent += len(data)
    return frame
