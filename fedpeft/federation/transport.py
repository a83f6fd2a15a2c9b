"""What a runtime gives to the round loop: a way to carry bytes to nodes and replies back."""

import hashlib
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


class Common:
    """Bytes that many parcels begin with: they are in memory once, and hashed once."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sha256 = hashlib.sha256(data)


class Parcel:
    """Bytes to be sent: a piece that others are sent too, then one of its own.

    Args:
        common: the first piece.
        own: the second.
    """

    def __init__(self, common: Common, own: bytes) -> None:
        self._common, self._own = common, own
        whole = common.sha256.copy()
        whole.update(own)
        self.digest = whole.digest()

    @staticmethod
    def of(data: "bytes | Parcel") -> "Parcel":
        """The parcel of these bytes."""
        return data if isinstance(data, Parcel) else Parcel(Common(b""), data)

    def piece(self, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`, or to the last."""
        size = len(self._common.data)
        return self._common.data[begin:end] + self._own[max(0, begin - size) : max(0, end - size)]

    def __len__(self) -> int:
        return len(self._common.data) + len(self._own)

    def __bytes__(self) -> bytes:
        return self._common.data + self._own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parcel) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


class Transport(Protocol):
    """Carries bytes; knows nothing of rounds."""

    def nodes(self) -> Sequence[NodeId]:
        """The nodes that can be asked now."""
        ...

    def exchange(self, requests: Mapping[NodeId, Parcel], deadline_s: float) -> Iterator[Arrival]:
        """Replies to these requests as they arrive, until all are in or the deadline has passed.

        The requests say what each node shall be answering from now on. A node that is at work on the very same bytes
        is not asked again, so a caller may stop listening, ask somebody else too, and go on; what a node still owes
        to an older request is dropped when it comes.
        """
        ...
