"""All clients in one process: bytes still go through the wire, so sizes are real."""

import time
from collections.abc import Iterator, Mapping, Sequence

from fedpeft.federation import Arrival, Handler, NodeId, Parcel


class MemoryTransport:
    """Calls handlers one after another: who was asked first answers first, in node order among equals.

    Args:
        handlers: one for each node.
    """

    def __init__(self, handlers: Mapping[NodeId, Handler]) -> None:
        self._handlers = dict(handlers)
        self._pending: dict[NodeId, Parcel] = {}

    def nodes(self) -> Sequence[NodeId]:
        """All of them."""
        return sorted(self._handlers)

    def exchange(self, requests: Mapping[NodeId, Parcel], deadline_s: float) -> Iterator[Arrival]:
        """Replies as they are made; who has not begun when the deadline passes is not asked."""
        until = time.monotonic() + deadline_s
        kept = {node: request for node, request in self._pending.items() if requests.get(node) == request}
        self._pending = kept | {node: requests[node] for node in sorted(requests) if node not in kept}
        while self._pending and time.monotonic() < until:
            node, request = next(iter(self._pending.items()))
            del self._pending[node]
            yield Arrival(node, self._handlers[node](bytes(request)))
