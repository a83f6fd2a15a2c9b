"""Checksum and content of a payload: opened as views of its bytes, sealed in one copy."""

import hashlib
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from fedpeft._proto import update_pb2 as pb
from fedpeft.errors import Defect, PayloadError
from fedpeft.wire.coders import Coded
from fedpeft.wire.fields import LONGEST, Kind, MalformedError, delimited, entries, read_length

_CHECKSUM, _CONTENT = 1, 2  # fields of Payload
_HEADER, _PARTS = 1, 2  # of Content
_NAME, _DATA, _TABLE = 1, 4, 5  # of Part
_OTHER_FIELDS = 64  # the header, and fields that this version does not know
_PART_FIELDS = 64


def seal(header: pb.Header, parts: Iterable[tuple[str, int, Coded]]) -> bytes:
    """The payload of a header and of coded parts (name, number of elements, bytes), as protobuf would serialise it.

    Raises:
        ValueError: together they are longer than protobuf allows.
    """
    content = delimited(_HEADER, header.SerializeToString(deterministic=True))
    for name, numel, coded in parts:
        head = pb.Part(name=name, coder=coded.coder, numel=numel)
        tail = pb.Part(table=coded.table, parameter=coded.parameter, ones=coded.ones)
        content += delimited(
            _PARTS,
            head.SerializeToString(deterministic=True),
            *(delimited(_DATA, coded.data) if len(coded.data) else ()),
            tail.SerializeToString(deterministic=True),
        )
    if (length := sum(map(len, content))) > LONGEST:
        raise ValueError(f"a payload holds at most {LONGEST:,} bytes, got {length:,}; a smaller codec makes fewer")
    checksum = hashlib.sha256()
    for piece in content:
        checksum.update(piece)
    return b"".join((*delimited(_CHECKSUM, checksum.digest()), *delimited(_CONTENT, *content)))


def open_content(data: memoryview, most_parts: int, most_beside: int) -> tuple[pb.Content, list[memoryview]]:
    """The content of a payload without the `data` of its parts, and each part's `data` where it lies.

    Args:
        data: the payload.
        most_parts: how many parts there may be.
        most_beside: how many bytes there may be beside the parts' `data`; only these are copied.

    Raises:
        PayloadError: the bytes are no payload, or their checksum is wrong.
    """
    content = _checked(data)
    try:
        kept, part_data = _split_content(content, most_parts, most_beside)
        return pb.Content.FromString(bytes(kept)), part_data
    except (MalformedError, DecodeError) as error:
        raise PayloadError(Defect.MALFORMED, f"the content is not readable: {error}") from None


def _checked(data: memoryview) -> memoryview:
    """The content of a payload whose form and checksum are right."""
    try:
        checksum, position = _canonical(data, 0, _CHECKSUM)
        content, position = _canonical(data, position, _CONTENT)
    except MalformedError as error:
        raise PayloadError(Defect.MALFORMED, f"not a payload: {error}") from None
    if position != len(data):
        raise PayloadError(Defect.MALFORMED, "bytes stand beside checksum and content")
    if hashlib.sha256(content).digest() != checksum:
        raise PayloadError(Defect.CHECKSUM, "the content is not what its checksum says; bytes were lost or changed")
    return content


def _canonical(data: memoryview, position: int, number: int) -> tuple[memoryview, int]:
    """The value of a field that stands at `position` as protobuf writes it, and where it ends; empty if none does."""
    if data[position : position + 1] != bytes([number << 3 | Kind.DELIMITED]):
        return data[:0], position
    length, begin = read_length(data, position + 1)
    value = data[begin : begin + length]
    if len(value) < length:
        raise MalformedError(f"field {number} ends {length - len(value)} bytes past the last")
    if not length or data[position:begin] != delimited(number, value)[0]:
        raise MalformedError(f"the length of field {number} is not written as protobuf writes it")
    return value, begin + length


def _split_content(content: memoryview, most_parts: int, most_beside: int) -> tuple[bytearray, list[memoryview]]:
    """What protobuf has to see of a content, and the `data` of each part."""
    excess = PayloadError(Defect.EXTRA_PART, f"expected at most {most_parts} parts, got more")
    kept, part_data = bytearray(), []
    for entry in entries(content, most_parts + _OTHER_FIELDS, excess):
        if entry.kind != Kind.DELIMITED or entry.number == _HEADER:
            _keep(kept, entry.whole, most_beside)
        elif entry.number == _PARTS:
            rest, data = _split_part(entry.value, most_beside)
            _keep(kept, b"".join(delimited(_PARTS, rest)), most_beside)
            part_data.append(data)
    return kept, part_data


def _split_part(part: memoryview, most_beside: int) -> tuple[bytes, memoryview]:
    """What protobuf has to see of a part, and its `data`: where that occurs more than once, the last counts."""
    excess = MalformedError(f"a part has more than {_PART_FIELDS} fields")
    kept, data = bytearray(), part[:0]
    for entry in entries(part, _PART_FIELDS, excess):
        if entry.kind != Kind.DELIMITED or entry.number in (_NAME, _TABLE):
            _keep(kept, entry.whole, most_beside)
        elif entry.number == _DATA:
            data = entry.value
    return bytes(kept), data


def _keep(kept: bytearray, piece: bytes | memoryview, most: int) -> None:
    """Append, up to a length."""
    if len(kept) + len(piece) > most:
        raise PayloadError(Defect.TOO_LARGE, f"expected at most {most} bytes beside the parts' data, got more")
    kept += piece
