"""One site's connection, as the server sees it: from a greeting in time to a good-bye."""

import threading
import time
from collections.abc import Callable, Iterator

import grpc

from fedpeft import __version__
from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import Defect, FedpeftError, PayloadError, Reason, RefusedError
from fedpeft.federation import NodeId, Parcel
from fedpeft.runtime.grpc import endpoint
from fedpeft.runtime.grpc.link import Link

PATIENCE = 100  # frames of a site that nobody asked for, before it is sent something again
GOOD_BYE_S = 5.0  # that the other end has to take it

_UNASKED = ("offer", "take", "drop", "working")


class Session:
    """Listens to a site and keeps it to the protocol; what it says is passed on.

    Args:
        node: the site.
        fingerprint: of its key.
        link: carries messages to and from it.
        hang_up: ends the stream at once.
        greeted: is given its Hello; raises RefusedError if it may not take part.
        works: is told what the site says that it does.
    """

    def __init__(
        self,
        node: NodeId,
        fingerprint: str,
        link: Link,
        hang_up: Callable[[], object],
        greeted: Callable[["Session", pb.Hello], None],
        works: Callable[[str], None],
    ) -> None:
        self.node, self.fingerprint, self.link = node, fingerprint, link
        self.why = "the connection was lost"
        self.heard = False
        self._hang_up, self._greeted, self._works = hang_up, greeted, works
        self._patience = PATIENCE
        self._closing_since = 0.0

    def send(self, task: Parcel) -> None:
        """Offer a task."""
        self._patience = PATIENCE
        self.link.send(task)

    def dismiss(self, why: str, refused: bool = False, finished: bool = False) -> None:
        """Say good-bye, unless that was done."""
        if not self.link.closed:
            self.why, self.heard = why, finished
            self.link.bye(why, refused, finished)

    def listen(self, frames: Iterator[pb.Frame], greeting_s: float) -> None:
        """Take in what comes until the stream ends.

        Args:
            frames: what comes.
            greeting_s: seconds that the first may take.

        Raises:
            RefusedError: the site may not take part as it is.
        """
        late = threading.Timer(greeting_s, lambda: self.dismiss("expected a Hello in time"))
        late.daemon = True
        late.start()
        try:
            first = next(frames)
            late.cancel()
            self._greet(first)
            for frame in frames:
                self._handle(frame)
                del frame  # a megabyte, perhaps, that would stay here until the next one comes
        except (grpc.RpcError, StopIteration):
            pass
        except RefusedError as error:
            self.dismiss(str(error), refused=True)
            raise
        except FedpeftError as error:
            self.dismiss(str(error))
        except OSError as error:
            self.dismiss("the server cannot keep what it is sent")
            self.why = f"what it sends cannot be kept: {error}"
        finally:
            late.cancel()
            self.link.close()

    def hang_up_if_deaf(self) -> None:
        """End the stream of a site that has not taken its good-bye in time; to be called now and then."""
        if self.link.closed:
            now = time.monotonic()
            self._closing_since = self._closing_since or now
            if now - self._closing_since > GOOD_BYE_S:
                self._hang_up()

    def _greet(self, first: pb.Frame) -> None:
        hello = first.hello
        if first.WhichOneof("frame") != "hello":
            raise RefusedError(Reason.POLICY, "expected a Hello as the first frame")
        if hello.protocol != endpoint.PROTOCOL:
            raise RefusedError(
                Reason.POLICY,
                f"this server speaks protocol {endpoint.PROTOCOL} (fedpeft {__version__}), "
                f"the site {hello.protocol} (fedpeft {hello.version[:40]}); install the same version",
            )
        self._greeted(self, hello)

    def _handle(self, frame: pb.Frame) -> None:
        kind = frame.WhichOneof("frame")
        if kind in _UNASKED:
            self._patience -= 1
            if self._patience < 0:
                raise PayloadError(Defect.COUNT, f"expected at most {PATIENCE} frames that nobody asked for")
        match kind:
            case "working":
                self._works(frame.working.state if frame.working.state in ("training", "idle") else "?")
            case "bye":
                self.why = frame.bye.why[:200]
                self.link.close()
            case _:
                self.link.handle(frame)
