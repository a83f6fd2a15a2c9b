"""What a runtime gives to the round loop: a way to carry bytes to nodes and replies back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

NodeId: TypeAlias = str
Handler: TypeAlias = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Arrival:
    """A reply, from the node that the transport knows it is from."""

    node: NodeId
    data: bytes


class Transport(Protocol):
    """Carries bytes; knows nothing of rounds."""

    def nodes(self) -> Sequence[NodeId]:
        """The nodes that can be asked now."""
        ...

    def exchange(self, requests: Mapping[NodeId, bytes], deadline_s: float) -> Iterator[Arrival]:
        """Send each node its request; yield replies as they arrive, until all are in or the deadline has passed."""
        ...
