"""A Flower grid in this process: nodes come, go, err and keep silent as a test says."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedpeft.runtime.flower.post import unwrap, wrap

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


@dataclass
class Node:
    """One node: what it answers to a query and to a task; an Error or None (silence) stands for itself."""

    claims: str | Error | None
    handler: Callable[[bytes], bytes | Error | None]
    registered: str = ""
    asked: list[bytes] = field(default_factory=list)

    def take(self, message: Message) -> Message | None:
        if message.metadata.message_type == "query":
            answer = self.claims.encode() if isinstance(self.claims, str) else self.claims
        else:
            self.asked.append(unwrap(message.content))
            answer = self.handler(self.asked[-1])
        if answer is None:
            return None
        return Message(answer if isinstance(answer, Error) else wrap(answer), reply_to=message)


class FakeGrid(Grid):
    """Delivers at once; a reply waits until it is pulled."""

    def __init__(self, nodes: Mapping[int, Any]) -> None:
        self.nodes: dict[int, Any] = dict(nodes)
        self.replies: dict[str, Message] = {}
        self.ttls: list[float] = []
        self.twice = False
        self._ids = itertools.count(1)

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> object:
        return None

    def create_message(self, *args: object, **more: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=i, name=getattr(node, "registered", "")) for i, node in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return list(self._push(messages))

    def _push(self, messages: Iterable[Message]) -> Iterator[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = letter = f"letter-{next(self._ids)}"
            self.ttls.append(message.metadata.ttl)
            node = self.nodes.get(message.metadata.dst_node_id)
            reply = node.take(message) if node else Message(Error(5, "node unavailable"), reply_to=message)
            if reply is not None:
                self.replies[letter] = reply
            yield letter

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        come = [self.replies[letter] for letter in message_ids if letter in self.replies]
        if not self.twice:
            self.replies = {letter: reply for letter, reply in self.replies.items() if letter not in set(message_ids)}
        return come * (1 + self.twice)
