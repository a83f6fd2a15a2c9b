"""A reply on the wire: a small head, and a payload that is never copied to be looked at."""

import struct

from google.protobuf.message import DecodeError

from fedpeft._proto import federation_pb2 as pb
from fedpeft.errors import Defect, Reason, RefusedError

LARGEST_HEAD = 1 << 16  # metrics, or a failure's traceback
_LENGTH = struct.Struct("<I")


def join(head: pb.Reply, *payloads: bytes | memoryview) -> bytes:
    """The bytes of a reply: the head's length, the head, the payloads."""
    raw = head.SerializeToString(deterministic=True)
    return b"".join((_LENGTH.pack(len(raw)), raw, *payloads))


def split(data: bytes | memoryview) -> tuple[pb.Reply, memoryview]:
    """Head and payloads of a reply that came from outside; the payloads are a view of `data`.

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


def cut(update: pb.Update, payloads: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The payload of an update, and those of the statistics that follow it.

    Raises:
        RefusedError: the statistics are said to be longer than what came.
    """
    beside = sum(update.sizes)
    if beside > len(payloads):
        raise RefusedError(
            Reason.BAD_PAYLOAD,
            f"{Defect.SIZE.value}: statistics of {beside} bytes, where {len(payloads)} came with the update",
        )
    begin = len(payloads) - beside
    payload, statistics = payloads[:begin], []
    for size in update.sizes:
        statistics.append(payloads[begin : begin + size])
        begin += size
    return payload, statistics
