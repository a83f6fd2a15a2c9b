"""A reply on the wire: a small head, and a payload that is never copied to be looked at."""

import struct

from google.protobuf.message import DecodeError

from fedpeft._proto import federation_pb2 as pb
from fedpeft.errors import Reason, RefusedError

LARGEST_HEAD = 1 << 16  # metrics, or a failure's traceback
_LENGTH = struct.Struct("<I")


def join(head: pb.Reply, payload: bytes = b"") -> bytes:
    """The bytes of a reply: the head's length, the head, the payload."""
    raw = head.SerializeToString(deterministic=True)
    return b"".join((_LENGTH.pack(len(raw)), raw, payload))


def split(data: bytes | memoryview) -> tuple[pb.Reply, memoryview]:
    """Head and payload of a reply that came from outside; the payload is a view of `data`.

    Raises:
        RefusedError: the bytes are no reply.
    """
    view, head = memoryview(data), pb.Reply()
    if len(view) < _LENGTH.size:
        raise RefusedError(Reason.BAD_PAYLOAD, f"the reply is not readable: it has {len(view)} bytes")
    (length,) = _LENGTH.unpack_from(view)
    end = _LENGTH.size + length
    if length > LARGEST_HEAD or end > len(view):
        raise RefusedError(
            Reason.BAD_PAYLOAD,
            f"the reply is not readable: a head of {length} bytes, where {len(view) - _LENGTH.size} came "
            f"and {LARGEST_HEAD} are allowed",
        )
    try:
        head.ParseFromString(bytes(view[_LENGTH.size : end]))
    except DecodeError as error:
        raise RefusedError(Reason.BAD_PAYLOAD, f"the reply is not readable: {error}") from None
    return head, view[end:]
