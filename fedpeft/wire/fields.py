"""The part of protobuf's encoding that payloads need, read from a view of the bytes: nothing is copied."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

LONGEST = 2**31 - 1  # what protobuf takes for the length of a field
_TAG_BYTES, _VARINT_BYTES = 5, 10
_LARGEST_TAG, _LARGEST_VARINT = 2**32 - 1, 2**64 - 1


class Kind(IntEnum):
    """How a field is written: the low three bits of its tag."""

    VARINT = 0
    FIXED64 = 1
    DELIMITED = 2
    GROUP = 3
    GROUP_END = 4
    FIXED32 = 5


class Entry(NamedTuple):
    """One field of a message as it stands in the bytes.

    Args:
        number: of the field.
        kind: how it is written; a group is one entry, of the kind `GROUP_END`.
        whole: the field with its tag.
        value: what stands behind tag and length.
    """

    number: int
    kind: int
    whole: memoryview
    value: memoryview


class MalformedError(ValueError):
    """The bytes are no message, as protobuf understands it."""


def entries(message: memoryview, most: int, excess: Exception) -> Iterator[Entry]:
    """The fields of a message in order; those inside a group count, but are not given out.

    Args:
        message: bytes of a serialised message.
        most: how many fields to look at.
        excess: what to raise when there are more.

    Raises:
        MalformedError: the bytes are no message.
    """
    position = begin = count = 0
    groups: list[int] = []
    while position < len(message):
        if (count := count + 1) > most:
            raise excess
        if not groups:
            begin = position
        tag, value = read_varint(message, position, _TAG_BYTES)
        number, kind = tag >> 3, tag & 7
        if not number or tag > _LARGEST_TAG:
            raise MalformedError(f"a field has the number {number}")
        value, position = _extent(message, value, kind)
        if kind == Kind.GROUP:
            groups.append(number)
        elif kind == Kind.GROUP_END and (not groups or groups.pop() != number):
            raise MalformedError(f"a group {number} ends that did not begin")
        if not groups:
            yield Entry(number, kind, message[begin:position], message[value:position])
    if groups:
        raise MalformedError(f"a group {groups[-1]} does not end")


def _extent(message: memoryview, position: int, kind: int) -> tuple[int, int]:
    """Where the value of a field begins and ends whose tag ends at `position`."""
    begin = end = position
    match kind:
        case Kind.VARINT:
            _, end = read_varint(message, position, _VARINT_BYTES)
        case Kind.FIXED64:
            end += 8
        case Kind.DELIMITED:
            length, begin = read_length(message, position)
            end = begin + length
        case Kind.FIXED32:
            end += 4
        case Kind.GROUP | Kind.GROUP_END:
            pass
        case _:
            raise MalformedError(f"a field is of the kind {kind}, which there is not")
    if end > len(message):
        raise MalformedError(f"a field ends {end - len(message)} bytes past the last")
    return begin, end


def read_length(message: memoryview, position: int) -> tuple[int, int]:
    """The length of what follows, and where that begins.

    Raises:
        MalformedError: the bytes end first, or the length is not one that protobuf takes.
    """
    length, position = read_varint(message, position, _VARINT_BYTES)
    if length > LONGEST:
        raise MalformedError(f"expected a length of at most {LONGEST}, got {length}")
    return length, position


def read_varint(message: memoryview, position: int, most_bytes: int) -> tuple[int, int]:
    """A number, cut to 64 bits as protobuf does, and where it ends.

    Raises:
        MalformedError: the bytes end first, or the number is longer.
    """
    value = 0
    for i, byte in enumerate(message[position : position + most_bytes]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & _LARGEST_VARINT, position + i + 1
    raise MalformedError(f"a number ends neither within {most_bytes} bytes nor before the last one")


def varint(value: int) -> bytes:
    """A number in the fewest bytes."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, *pieces: bytes | memoryview) -> list[bytes | memoryview]:
    """A field of bytes, in pieces that are to be joined."""
    return [varint(number << 3 | Kind.DELIMITED) + varint(sum(map(len, pieces))), *pieces]
