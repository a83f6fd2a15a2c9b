"""Payloads: the parts of one encoded vector with a header and a checksum (docs/wire-format.md)."""

from dataclasses import dataclass

from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Field, Layout, Numbers, Part, Parts, Plane, Symbols
from fedpeft.errors import Defect, PayloadError
from fedpeft.wire import coders, envelope

VERSION = 1
_LONGEST_CODEC = 4096
_PART_FRAMING = 512  # name, sizes, and a frequency table of 256 entries
_SLACK = 1 << 16  # bytes of fields that are longer than they should be, for the defect to name the field
_MOST_PARTS = 1 << 16  # where no layout says how many there are


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
    message = pb.Header(
        version=VERSION,
        fingerprint=header.fingerprint,
        run=header.run,
        round=header.round,
        client=header.client,
        codec=header.codec,
        numel=header.numel,
    )
    return envelope.seal(message, [(name, _numel(parts[name]), coders.encode(parts[name])) for name in sorted(parts)])


def unpack(data: bytes | memoryview, expected: Header, layout: Layout) -> Parts:
    """The parts of a payload that came from outside: every length is checked before anything is allocated.

    Args:
        data: the bytes as they came; numbers among the parts are read where they lie in them, so they may not change
            while the parts are in use.
        expected: what the receiver knows that the header must say.
        layout: what the receiver's own codec makes in the receiver's own space.

    Raises:
        PayloadError: `.defect` names the first rule that is broken.
    """
    cap, came = largest(layout, expected), _view(data)
    if len(came) > cap:
        raise PayloadError(Defect.TOO_LARGE, f"at most {cap} bytes can encode this, got {len(came)}")
    content, part_data = envelope.open_content(_not_empty(came), len(layout), _framing(layout, expected) + _SLACK)
    _check_header(content.header, expected)
    return _check_parts(content, part_data, layout)


def largest(layout: Layout, header: Header) -> int:
    """The most bytes that a payload of such parts can have."""
    return _framing(layout, header) + sum(coders.largest(field) for field in layout.values())


def inspect(data: bytes | memoryview) -> tuple[Header, list[PartSize]]:
    """Header and part sizes of a payload, without decoding it.

    Raises:
        PayloadError: the bytes are no payload, or their checksum is wrong.
    """
    content, part_data = envelope.open_content(_not_empty(_view(data)), _MOST_PARTS, _MOST_PARTS * _PART_FRAMING)
    h = content.header
    if h.version != VERSION:
        raise PayloadError(Defect.VERSION, f"expected version {VERSION}, got {h.version}")
    return Header(h.fingerprint, h.run, h.round, h.client, h.codec, h.numel), [
        PartSize(part.name, _coder_name(part.coder), part.numel, len(coded) + len(part.table))
        for part, coded in zip(content.parts, part_data, strict=True)
    ]


def _view(data: bytes | memoryview) -> memoryview:
    """The bytes one by one, whatever they were a view of."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _not_empty(data: memoryview) -> memoryview:
    if not data:
        raise PayloadError(Defect.EMPTY, "expected a payload, got no bytes")
    return data


def _framing(layout: Layout, header: Header) -> int:
    return 256 + len(header.codec) + sum(_PART_FRAMING + len(name) for name in layout)


def _coder_name(coder: int) -> str:
    known = pb.Coder.DESCRIPTOR.values_by_number.get(coder)
    return known.name.removeprefix("CODER_").lower() if known else f"unknown coder {coder}"


def _numel(part: Part) -> int:
    match part:
        case Plane(numel=numel):
            return numel
        case Symbols(values) | Numbers(values):
            return int(values.size)


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


def _check_parts(content: pb.Content, part_data: list[memoryview], layout: Layout) -> Parts:
    parts: dict[str, Part] = {}
    for part, data in zip(content.parts, part_data, strict=True):
        if part.name in parts:
            raise PayloadError(Defect.DUPLICATE_PART, f"part {part.name[:64]!r} came twice")
        if part.name not in layout:
            raise PayloadError(Defect.EXTRA_PART, f"part {part.name[:64]!r} is not one of {sorted(layout)}")
        field = layout[part.name]
        _check_size(part, field)
        coded = coders.Coded(part.coder, data, part.table, part.parameter, part.ones)
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
