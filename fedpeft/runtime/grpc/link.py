"""One end of a session: whole messages over a stream of frames, in pieces that are acknowledged and resumed."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import Defect, PayloadError, Reason, RefusedError
from fedpeft.federation import Parcel
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.spool import PIECE, Incoming, Spool
from fedpeft.wire import fields

WINDOW = 4 << 20  # bytes sent ahead of what the other end has kept, which it has to hold meanwhile
SMALL = 1 << 16  # a message of so many bytes goes with its offer
MOST_FRAMES = 256  # that wait to be sent, pieces apart: an end that keeps to the protocol leaves a dozen at most

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
    message: Parcel
    sent: int = 0
    limit: int = 0  # 0: the other end has not asked for it yet


@dataclass(eq=False)
class _Coming:
    offer: pb.Offer
    file: Incoming
    admitted: bool = False


class Link:
    """Carries messages both ways; one at a time each way, a newer in place of an older.

    Frames come in on one thread (`handle`), go out on another (`frames`), and everything else may be called from any
    thread: it neither waits nor touches a file.

    Args:
        peer: whom it is with.
        spool: where large messages grow.
        gate: how many links may receive a large message at once.
        largest: bytes of the largest message that this end takes.
        wanted: raises RefusedError for a message that is not wanted; returns False for one that is here already.
        received: is given every message that came whole.
        refused: is told why a message that was offered is not taken.
        dropped: is told when the other end does not want what was offered.
        kept: is told the digest of what the other end has kept whole.
    """

    def __init__(
        self,
        peer: str,
        spool: Spool,
        gate: LinkGate,
        largest: int,
        wanted: Callable[[pb.Offer], bool],
        received: Callable[[Message], None],
        refused: Callable[[RefusedError], None],
        dropped: Callable[[pb.Drop], None],
        kept: Callable[[bytes], None] = lambda digest: None,
    ) -> None:
        self.peer = peer
        self._spool, self._gate, self._largest = spool, gate, largest
        self._wanted, self._received, self._refused, self._dropped = wanted, received, refused, dropped
        self._kept = kept
        self._changed = threading.Condition()
        self._frames: deque[pb.Frame] = deque()
        self._out: _Outgoing | None = None
        self._coming: _Coming | None = None
        self.closed = False

    def push(self, frame: pb.Frame) -> None:
        """Send a frame; an end that does not read what it is sent is given up."""
        with self._changed:
            if len(self._frames) < MOST_FRAMES:
                self._frames.append(frame)
            else:
                self.closed = True
            self._changed.notify_all()

    def send(self, message: Parcel, answers: bytes = b"") -> None:
        """Offer a message, in place of one that is still on its way."""
        small = len(message) <= SMALL
        data = bytes(message) if small else b""
        offer = pb.Offer(digest=message.digest, size=len(message), answers=answers, data=data)
        with self._changed:
            self._out = _Outgoing(message)
            self.push(pb.Frame(offer=offer))

    def frames(self) -> Iterator[bytes]:
        """What is to be sent, serialised, until the link is closed and all is."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self.closed or self._may_send())
                if self._frames:
                    frame = self._frames.popleft().SerializeToString()
                elif self._out is None or self.closed:
                    return
                else:
                    frame = _piece(self._out)
            yield frame
            del frame  # as large as a piece; it would stay here until there is another

    def handle(self, frame: pb.Frame) -> None:
        """Take in a frame; after the link was closed, ignore it.

        Raises:
            PayloadError: the other end does not keep to the protocol.
            OSError: the spool cannot be written.
        """
        if self.closed:
            return
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

    def close_round(self, task: bytes | None) -> None:
        """Take no more of the message that is coming in, if one is, unless it answers this task."""
        with self._changed:
            coming = self._coming
            if coming is None or coming.offer.answers == task:
                return
            self._coming = None
        self._gate.leave(self)
        self._drop(coming.offer, RefusedError(Reason.LATE, "the round that it answers was closed"))

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
            elif offer.size > SMALL:
                self._begin(offer)
            elif (len(offer.data), hashlib.sha256(offer.data).digest()) == (offer.size, offer.digest):
                self._take_in(Message(offer.digest, offer.answers, offer.data))
            else:
                raise RefusedError(Reason.BAD_PAYLOAD, "the message is not what its sender announced")
        except RefusedError as error:
            self._drop(offer, error)

    def _begin(self, offer: pb.Offer) -> None:
        coming = _Coming(offer, self._spool.open(self.peer, offer.digest, offer.size))
        if coming.file.offset == offer.size:
            self._finish(coming)
            return
        with self._changed:
            self._coming = coming
        self._gate.enter(self, lambda admitted: self._turn(coming, admitted))
        with self._changed:
            gone = self.closed or self._coming is not coming
        if gone:
            self._gate.leave(self)

    def _turn(self, coming: _Coming, admitted: bool) -> None:
        with self._changed:
            if self._coming is coming:
                coming.admitted = admitted
                if admitted:
                    self.push(pb.Frame(take=pb.Take(digest=coming.offer.digest, offset=coming.file.offset)))

    def _came(self, chunk: pb.Chunk) -> None:
        with self._changed:
            coming = self._coming
            if coming is None or not coming.admitted:
                return  # sent before the other end knew that it is to wait, or is not wanted
            if (chunk.digest, chunk.offset) != (coming.offer.digest, coming.file.offset):
                return
        coming.file.add(chunk.data)
        if coming.file.offset < coming.offer.size:
            self._gate.touch(self)
            self._keep(coming.offer.digest, coming.file.offset)
            return
        with self._changed:
            if self._coming is not coming:
                return
            self._coming = None
        self._gate.leave(self)
        self._finish(coming)

    def _finish(self, coming: _Coming) -> None:
        offer = coming.offer
        try:
            data = coming.file.whole()
        except PayloadError as error:
            if coming.file.recalled:  # perhaps the disk is to blame for what it was said to hold
                self._begin(offer)
            else:
                self._drop(offer, RefusedError(Reason.BAD_PAYLOAD, str(error)))
            return
        self._take_in(Message(offer.digest, offer.answers, data, coming.file))

    def _take_in(self, message: Message) -> None:
        self._received(message)
        self._keep(message.digest, len(message.data))

    def _move(self, digest: bytes, start: int | None, kept: int | None) -> None:
        with self._changed:
            out = self._out
            if out is None or out.message.digest != digest:
                return
            whole = kept is not None and kept >= len(out.message)
            if kept is None or whole:
                self._out = None
            elif start is not None:
                out.sent, out.limit = start, start + WINDOW
            elif out.limit:
                out.limit = kept + WINDOW
            self._changed.notify_all()
        if whole:
            self._kept(digest)

    def _may_send(self) -> bool:
        return self._out is not None and self._out.sent < min(self._out.limit, len(self._out.message))

    def _end(self) -> None:
        with self._changed:
            self._coming = None
        self._gate.leave(self)

    def _keep(self, digest: bytes, offset: int) -> None:
        self.push(pb.Frame(kept=pb.Kept(digest=digest, offset=offset)))

    def _drop(self, offer: pb.Offer, error: RefusedError) -> None:
        drop = pb.Drop(digest=offer.digest, reason=error.reason.value, detail=error.detail[:2000])
        self.push(pb.Frame(drop=drop))
        self._refused(error)


def _piece(out: _Outgoing) -> bytes:
    """The frame of the next piece, written out by hand: protobuf would copy the piece three times more."""
    head, data = pb.Chunk(digest=out.message.digest, offset=out.sent), out.message.piece(out.sent, out.sent + PIECE)
    chunk = fields.delimited(pb.Chunk.DATA_FIELD_NUMBER, data)
    out.sent += len(data)
    return b"".join(fields.delimited(pb.Frame.CHUNK_FIELD_NUMBER, head.SerializeToString(), *chunk))
