"""What each node shall be answering, and which answers have come."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import Reason, RefusedError
from fedpeft.federation import NodeId, Parcel
from fedpeft.runtime.grpc.link import Message


@dataclass
class _Task:
    """What a node shall be answering; `reply` is the digest of its answer once that has come."""

    parcel: Parcel
    reply: bytes = b""


class Desk:
    """Tasks go out, and each takes one answer; whoever calls holds the transport's lock."""

    def __init__(self) -> None:
        self._tasks: dict[NodeId, _Task] = {}
        self._inbox: deque[tuple[NodeId, Message]] = deque()

    def ask(self, requests: Mapping[NodeId, Parcel]) -> tuple[list[NodeId], list[tuple[NodeId, Message]]]:
        """Put new tasks in place of all; who is at work on the same bytes, or whose answer to them lies here, goes on.

        Returns:
            The nodes whose task is new, and the answers that came too late.
        """
        tasks = {node: _Task(Parcel.of(data)) for node, data in requests.items()}
        arrived = {(node, message.answers) for node, message in self._inbox}
        for node, task in tasks.items():
            old = self._tasks.get(node)
            if old and old.parcel == task.parcel and (not old.reply or (node, task.parcel.digest) in arrived):
                tasks[node] = old
        new = [node for node, task in tasks.items() if self._tasks.get(node) is not task]
        self._tasks = tasks
        late = [(node, m) for node, m in self._inbox if self.digest(node) != m.answers]
        self._inbox = deque((node, m) for node, m in self._inbox if self.digest(node) == m.answers)
        return new, late

    def task(self, node: NodeId) -> Parcel | None:
        """What a node has still to answer."""
        task = self._tasks.get(node)
        return None if task is None or task.reply else task.parcel

    def digest(self, node: NodeId) -> bytes | None:
        """Of a node's task, answered or not."""
        task = self._tasks.get(node)
        return task.parcel.digest if task else None

    def owing(self) -> bool:
        """Whether an answer has not come."""
        return any(not task.reply for task in self._tasks.values())

    def came(self, node: NodeId, offer: pb.Offer) -> bytes:
        """The digest of the answer that has come to what an offer answers; empty where none has.

        Raises:
            RefusedError: it answers no task that is open.
        """
        task = self._tasks.get(node)
        if task is None or task.parcel.digest != offer.answers:
            raise RefusedError(Reason.LATE, "it answers no task that is open; its round was closed")
        return task.reply

    def put(self, node: NodeId, message: Message) -> bool:
        """Take an answer, unless its task is closed or has one."""
        task = self._tasks.get(node)
        if task is None or task.parcel.digest != message.answers or task.reply:
            return False
        task.reply = message.digest
        self._inbox.append((node, message))
        return True

    def next(self) -> tuple[NodeId, Message] | None:
        """The answer that came first, which then lies here no more."""
        return self._inbox.popleft() if self._inbox else None

    def holds(self) -> bool:
        """Whether an answer lies here."""
        return bool(self._inbox)
