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
    data: bytes | memoryview


class Transport(Protocol):
    """Carries bytes; knows nothing of rounds."""

    def nodes(self) -> Sequence[NodeId]:
        """The nodes that can be asked now."""
        ...

    def exchange(self, requests: Mapping[NodeId, bytes], deadline_s: float) -> Iterator[Arrival]:
        """Replies to these requests as they arrive, until all are in or the deadline has passed.

        The requests say what each node shall be answering from now on. A node that is at work on the very same bytes
        is not asked again, so a caller may stop listening, ask somebody else too, and go on; what a node still owes
        to an older request is dropped when it comes.
        """
        ...
