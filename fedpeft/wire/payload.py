"""Payloads: the parts of one encoded vector with a header and a checksum (docs/wire-format.md)."""

import hashlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Field, Layout, Numbers, Part, Parts, Plane, Symbols
from fedpeft.errors import Defect, PayloadError
from fedpeft.wire import coders

VERSION = 1
_LONGEST_CODEC = 4096
_OTHER_FIELDS = 64  # the header, and fields that this version does not know
_PART_FRAMING = 512  # name, sizes, and a frequency table of 256 entries


@dataclass(frozen=True)
class Header:
    """What a payload is, of whom, and for when.

    Args:
        fingerprint: of the space, 32 bytes.
        run: 16 random bytes that name the run.
        round: the round, from 1.
        client: number of the sender in the run; 0 is the server.
        codec: the expression of the codec that decodes.
        numel: size d of the space.
    """

    fingerprint: bytes
    run: bytes
    round: int
    client: int
    codec: str
    numel: int


@dataclass(frozen=True)
class PartSize:
    """How one part went over the wire, for those who look into a payload."""

    name: str
    coder: str
    numel: int
    payload_bytes: int


def pack(header: Header, parts: Parts) -> bytes:
    """The payload of encoded parts; the same parts give the same bytes."""
    content = pb.Content(
        header=pb.Header(
            version=VERSION,
            fingerprint=header.fingerprint,
            run=header.run,
            round=header.round,
            client=header.client,
            codec=header.codec,
            numel=header.numel,
        )
    )
    for name in sorted(parts):
        coded = coders.encode(parts[name])
        content.parts.add(
            name=name,
            coder=coded.coder,
            numel=_numel(parts[name]),
            data=coded.data,
            table=coded.table,
            parameter=coded.parameter,
            ones=coded.ones,
        )
    body = content.SerializeToString(deterministic=True)
    return pb.Payload(checksum=hashlib.sha256(body).digest(), content=body).SerializeToString(deterministic=True)


def unpack(data: bytes, expected: Header, layout: Layout) -> Parts:
    """The parts of a payload that came from outside: every length is checked before anything is allocated.

    Args:
        data: the bytes as they came.
        expected: what the receiver knows that the header must say.
        layout: what the receiver's own codec makes in the receiver's own space.

    Raises:
        PayloadError: `.defect` names the first rule that is broken.
    """
    cap = largest(layout, expected)
    if len(data) > cap:
        raise PayloadError(Defect.TOO_LARGE, f"at most {cap} bytes can encode this, got {len(data)}")
    content = _content(data, most_parts=len(layout))
    _check_header(content.header, expected)
    return _check_parts(content, layout)


def largest(layout: Layout, header: Header) -> int:
    """The most bytes that a payload of such parts can have."""
    framing = 256 + len(header.codec) + sum(_PART_FRAMING + len(name) for name in layout)
    return framing + sum(coders.largest(field) for field in layout.values())


def inspect(data: bytes) -> tuple[Header, list[PartSize]]:
    """Header and part sizes of a payload, without decoding it.

    Raises:
        PayloadError: the bytes are no payload, or their checksum is wrong.
    """
    content = _content(data, most_parts=1 << 16)
    h = content.header
    if h.version != VERSION:
        raise PayloadError(Defect.VERSION, f"expected version {VERSION}, got {h.version}")
    header = Header(h.fingerprint, h.run, h.round, h.client, h.codec, h.numel)
    return header, [PartSize(p.name, _coder_name(p.coder), p.numel, len(p.data) + len(p.table)) for p in content.parts]


def _coder_name(coder: int) -> str:
    known = pb.Coder.DESCRIPTOR.values_by_number.get(coder)
    return known.name.removeprefix("CODER_").lower() if known else f"unknown coder {coder}"


def _numel(part: Part) -> int:
    match part:
        case Plane(numel=numel):
            return numel
        case Symbols(values) | Numbers(values):
            return int(values.size)


def _content(data: bytes, most_parts: int) -> pb.Content:
    if not data:
        raise PayloadError(Defect.EMPTY, "expected a payload, got no bytes")
    payload, content = pb.Payload(), pb.Content()
    try:
        payload.ParseFromString(data)
    except DecodeError as error:
        raise PayloadError(Defect.MALFORMED, f"not a payload: {error}") from None
    if hashlib.sha256(payload.content).digest() != payload.checksum:
        raise PayloadError(Defect.CHECKSUM, "the content is not what its checksum says; bytes were lost or changed")
    if data != pb.Payload(checksum=payload.checksum, content=payload.content).SerializeToString(deterministic=True):
        raise PayloadError(Defect.MALFORMED, "bytes stand beside checksum and content")
    if _more_fields_than(most_parts + _OTHER_FIELDS, payload.content):
        raise PayloadError(Defect.EXTRA_PART, f"expected at most {most_parts} parts, got more")
    try:
        content.ParseFromString(payload.content)
    except DecodeError as error:
        raise PayloadError(Defect.MALFORMED, f"the content is not readable: {error}") from None
    return content


def _more_fields_than(most: int, content: bytes) -> bool:
    """Whether a message has more fields: an empty one takes two bytes on the wire, and far more in memory."""
    position = count = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while position < len(content):
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 63:
                break
        return value

    while position < len(content) and count <= most:
        count += 1
        match varint() & 7:
            case 0:
                varint()
            case 2:
                length = varint()  # which moves `position`
                position += length
            case kind:
                position += {1: 8, 5: 4}.get(kind, len(content))  # of another kind is nothing that protobuf reads
    return count > most


def _check_header(came: pb.Header, expected: Header) -> None:
    for defect, what, want, got in (
        (Defect.VERSION, "version", VERSION, came.version),
        (Defect.FINGERPRINT, "the space's fingerprint", expected.fingerprint, came.fingerprint),
        (Defect.RUN, "run", expected.run, came.run),
        (Defect.ROUND, "round", expected.round, came.round),
        (Defect.ROUND, "client", expected.client, came.client),
        (Defect.CODEC, "codec", expected.codec, came.codec[:_LONGEST_CODEC]),
        (Defect.SIZE, "parameters", expected.numel, came.numel),
    ):
        if want != got:
            shown = [v.hex()[:16] if isinstance(v, bytes) else repr(v) for v in (want, got)]
            raise PayloadError(defect, f"{what}: expected {shown[0]}, got {shown[1]}")


def _check_parts(content: pb.Content, layout: Layout) -> Parts:
    parts: dict[str, Part] = {}
    for part in content.parts:
        if part.name in parts:
            raise PayloadError(Defect.DUPLICATE_PART, f"part {part.name[:64]!r} came twice")
        if part.name not in layout:
            raise PayloadError(Defect.EXTRA_PART, f"part {part.name[:64]!r} is not one of {sorted(layout)}")
        field = layout[part.name]
        _check_size(part, field)
        coded = coders.Coded(part.coder, part.data, part.table, part.parameter, part.ones)
        parts[part.name] = coders.decode(coded, field, part.numel)
    if missing := layout.keys() - parts.keys():
        raise PayloadError(Defect.MISSING_PART, f"expected {sorted(layout)}, did not get {sorted(missing)}")
    return parts


def _check_size(part: pb.Part, field: Field) -> None:
    if part.numel > field.numel or (part.numel < field.numel and not field.ragged):
        most = "at most " if field.ragged else ""
        raise PayloadError(
            Defect.PART_SIZE,
            f"part {part.name!r}: expected {most}{field.numel} {field.kind}, got {part.numel}",
        )
