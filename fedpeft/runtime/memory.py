"""All clients in one process: bytes still go through the wire, so sizes are real."""

import time
from collections.abc import Iterator, Mapping, Sequence

from fedpeft.federation import Arrival, Handler, NodeId


class MemoryTransport:
    """Calls handlers, one after another, in node order.

    Args:
        handlers: one for each node.
    """

    def __init__(self, handlers: Mapping[NodeId, Handler]) -> None:
        self._handlers = dict(handlers)

    def nodes(self) -> Sequence[NodeId]:
        """All of them."""
        return sorted(self._handlers)

    def exchange(self, requests: Mapping[NodeId, bytes], deadline_s: float) -> Iterator[Arrival]:
        """Replies as they are made; who has not begun when the deadline passes is not asked."""
        until = time.monotonic() + deadline_s
        for node in sorted(requests):
            if time.monotonic() >= until:
                return
            yield Arrival(node, self._handlers[node](requests[node]))
