"""Bytes in Flower's messages: sent to a node, and what comes back."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedpeft.errors import Reason, RefusedError, RunError

_RECORD, _ARRAY, _STYPE = "fedpeft", "payload", "fedpeft.v1"
_PULLED_AT_ONCE = 4
_CODES = {code: name.lower().replace("_", " ") for name, code in vars(ErrorCode).items() if isinstance(code, int)}
_PASSING = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


def wrap(data: bytes) -> RecordDict:
    """A message's content: one array, which Flower cuts into chunks and does not look into."""
    return RecordDict({_RECORD: ArrayRecord({_ARRAY: Array("uint8", (len(data),), _STYPE, data)})})


def unwrap(content: RecordDict) -> bytes:
    """The bytes in a message's content.

    Raises:
        RefusedError: the content is not what `wrap` makes.
    """
    record = content.get(_RECORD)
    if len(content) == 1 and isinstance(record, ArrayRecord) and list(record) == [_ARRAY]:
        array = record[_ARRAY]
        if (array.dtype, array.stype, tuple(array.shape)) == ("uint8", _STYPE, (len(array.data),)):
            return bytes(array.data)
    raise RefusedError(Reason.BAD_PAYLOAD, f"expected one array of type {_STYPE}, got {sorted(content)}"[:200])


@dataclass(frozen=True)
class Trouble:
    """What came instead of a reply.

    Args:
        why: class of the error, or what Flower calls it.
        passing: the same message may well be answered if it is sent again.
    """

    why: str
    passing: bool


class Post:
    """Sends letters to Flower's nodes, one by one so that each has an id of its own for certain.

    All methods raise RunError if the SuperLink fails.

    Args:
        grid: of the ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def online(self) -> dict[int, str]:
        """The nodes that are there, and the name that each was registered with: "" for none."""
        with _reached():
            return {node.node_id: node.name for node in self._grid.get_nodes()}

    def send(self, node: int, kind: str, data: bytes, ttl_s: float) -> str | None:
        """Send to a node; returns the letter's id, or None if Flower does not take it.

        Args:
            node: Flower's id.
            kind: "train" or "query".
            data: what it is sent.
            ttl_s: seconds in which the reply must be there.
        """
        with _reached():
            (letter,) = list(self._grid.push_messages([Message(wrap(data), node, kind, ttl=ttl_s)])) or (None,)
        return letter or None

    def fetch(self, letters: Collection[str]) -> Iterator[list[tuple[str, bytes | Trouble]]]:
        """What has come in reply to letters, a few at a time, so that few are in memory."""
        ids = list(letters)
        for i in range(0, len(ids), _PULLED_AT_ONCE):
            with _reached():
                pulled = self._grid.pull_messages(ids[i : i + _PULLED_AT_ONCE])
            few = {message.metadata.reply_to_message_id: message for message in pulled}
            yield [(letter, _opened(message)) for letter, message in few.items() if letter in letters]


@contextmanager
def _reached() -> Iterator[None]:
    """Flower has tried again for as long as it does, and what it raises then is its HTTP client's affair."""
    try:
        yield
    except Exception as error:
        raise RunError(f"Flower's SuperLink fails: {type(error).__name__}: {error}; the run can be taken up") from error


def _opened(message: Message) -> bytes | Trouble:
    if not message.has_error():
        try:
            return unwrap(message.content)
        except RefusedError as error:
            return Trouble(str(error), passing=False)
    code, reason = message.error.code, message.error.reason or ""
    # Of what a ClientApp raised its class is told; the text may quote a site's data.
    name = reason.removeprefix("<class '").partition("'>")[0].rpartition(".")[2] if reason.startswith("<class") else ""
    return Trouble(name[:80] if name.isidentifier() else _CODES.get(code, f"code {code}"), passing=code in _PASSING)
