"""The round loop's transport over the messages of a Flower run."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedpeft._proto import federation_pb2 as pb
from fedpeft.errors import RunError, StoppedError
from fedpeft.federation import Arrival, NodeId, Parcel, Watch, messages, unwatched
from fedpeft.runtime.flower.post import Post, Trouble
from fedpeft.runtime.flower.roster import Roster

_SHORTEST_S, _LONGEST_S = 0.05, 0.5
_AGAIN_S, _LONGEST_AGAIN_S = 0.25, 10.0


@dataclass
class _Asked:
    """What a node shall be answering; `letter` is "" until it is sent, and while it has to be sent again."""

    request: Parcel
    letter: str = ""
    not_before: float = 0.0
    pause_s: float = _AGAIN_S
    reply: bytes | None = None

    def again(self) -> None:
        """Have it sent once more, after a pause that grows."""
        self.letter, self.not_before = "", time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_AGAIN_S)


class FlowerTransport:
    """A `Transport` over push and pull of messages; nodes are sites, by name.

    What a node cannot answer (it is away, its message expired, its process died) is sent again while the deadline
    lasts. An exception in a ClientApp becomes a reply that says that the site failed, with the class of the error.

    Args:
        grid: of the ServerApp.
        least: sites that must be there before a round opens.
        watch: told who comes, who goes and who may not take part.
        doubt_s: how long two nodes may claim one name, or a missing site's node fail to say its own, before the run
            ends; Flower takes a minute to notice that a node died, which may have come back by then as another.
    """

    def __init__(self, grid: Grid, least: int, watch: Watch = unwatched, doubt_s: float = 90.0) -> None:
        self._least, self._doubt_s = least, doubt_s
        self._post = Post(grid)
        self._roster = Roster(self._post, watch)
        self._asked: dict[NodeId, _Asked] = {}
        self._stopped = threading.Event()

    def nodes(self) -> Sequence[NodeId]:
        """The sites that are there, once they are as many as a round needs and no node has still to say which it is.

        Raises:
            RunError: two nodes claim to be one site, or a node that is needed does not say which it is.
            StoppedError: `stop` was called.
        """
        began, pause = time.monotonic(), _SHORTEST_S
        while True:
            sites = self._roster.refresh()
            if len(sites) >= self._least and not self._roster.clash and not self._roster.waiting:
                return sorted(sites)
            if self._roster.doubts and time.monotonic() - began >= self._doubt_s:
                raise RunError(f"{len(sites)} sites are there, {self._least} needed: {'; '.join(self._roster.doubts)}")
            self._rest(pause)
            pause = min(1.5 * pause, _LONGEST_S)

    def exchange(self, requests: Mapping[NodeId, Parcel], deadline_s: float) -> Iterator[Arrival]:
        """Replies as they arrive, from whoever is there now or comes back before the deadline.

        Raises:
            StoppedError: `stop` was called.
        """
        until, pause = time.monotonic() + deadline_s, _SHORTEST_S
        old = self._asked
        self._asked = {
            node: old[node] if node in old and old[node].request == request else _Asked(request)
            for node, request in sorted(requests.items())
        }
        while self._asked and (left := until - time.monotonic()) > 0:
            self._send(left)
            for _ in self._fetch():
                for node in [node for node, asked in self._asked.items() if asked.reply is not None]:
                    pause = _SHORTEST_S
                    yield Arrival(node, self._asked.pop(node).reply or b"")
            if self._asked:
                self._rest(min(pause, left))
                pause = min(1.5 * pause, _LONGEST_S)

    def stop(self) -> None:
        """Make `nodes` and `exchange` raise StoppedError; may be called from another thread."""
        self._stopped.set()

    def _rest(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise StoppedError("the server was asked to stop; the run can be taken up")

    def _send(self, left_s: float) -> None:
        now = time.monotonic()
        due = {node: a for node, a in self._asked.items() if a.reply is None and not a.letter and a.not_before <= now}
        sites = self._roster.refresh() if due else {}
        for node, asked in due.items():
            asked.letter = (node in sites and self._post.send(sites[node], "train", bytes(asked.request), left_s)) or ""
            if not asked.letter:
                asked.again()

    def _fetch(self) -> Iterator[None]:
        """Note what has come; steps once for every few letters, and at least once."""
        letters = {asked.letter: asked for asked in self._asked.values() if asked.letter and asked.reply is None}
        for batch in self._post.fetch(letters):
            for letter, answer in batch:
                asked = letters[letter]
                if asked.letter != letter or asked.reply is not None:
                    continue
                if not isinstance(answer, Trouble):
                    asked.reply = answer
                elif answer.passing:
                    asked.again()
                else:
                    asked.reply = failure(bytes(asked.request), f"{answer.why}, on its Flower node")
            yield
        yield


def failure(request: bytes, error: str, trace: str = "") -> bytes:
    """What a site would reply that failed at a task.

    Args:
        request: the bytes of the task.
        error: what is told of the error.
        trace: its traceback.
    """
    task, told = pb.Task.FromString(request), pb.Failure(error=error, trace=trace)
    return messages.join(pb.Reply(run=task.run, round=task.round, failure=told))
