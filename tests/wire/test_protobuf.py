"""The reader of payloads takes and refuses what protobuf does, and the writer writes what protobuf writes."""

import hashlib

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import wire
from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Numbers, Symbols
from fedpeft.errors import Defect, PayloadError
from fedpeft.wire import coders
from tests.codecs.examples import all_bits
from tests.wire.crafting import content_of, field_of, header, plane, sealed

PARTS = {
    "a": Numbers(np.array([1, -2, 0.5], np.float32)),
    "b": plane([1, 7, 9], 12),
    "c": Symbols(np.array([2, 0, 1, 1], np.uint8), 3),
    "d": Numbers(np.zeros(0, np.int16)),
}
LAYOUT = {name: field_of(part) for name, part in PARTS.items()}
HEADER = header(77)
CONTENT = content_of(wire.pack(HEADER, PARTS))

thorough = settings(max_examples=800, deadline=None, derandomize=True, database=None)


def read_by_protobuf(data):
    """The content, as protobuf reads the whole payload."""
    if not data:
        raise PayloadError(Defect.EMPTY, "")
    try:
        payload = pb.Payload.FromString(data)
    except DecodeError:
        raise PayloadError(Defect.MALFORMED, "") from None
    known = pb.Payload(checksum=payload.checksum, content=payload.content)
    if known.SerializeToString(deterministic=True) != data:
        raise PayloadError(Defect.MALFORMED, "")
    if hashlib.sha256(payload.content).digest() != payload.checksum:
        raise PayloadError(Defect.CHECKSUM, "")
    try:
        return pb.Content.FromString(payload.content)
    except DecodeError:
        raise PayloadError(Defect.MALFORMED, "") from None


def unpacked_by_protobuf(data):
    """The parts of a payload of `HEADER` and `LAYOUT`, with no line of the wire but its coders."""
    came = read_by_protobuf(data)
    for defect, want, got in (
        (Defect.VERSION, wire.VERSION, came.header.version),
        (Defect.FINGERPRINT, HEADER.fingerprint, came.header.fingerprint),
        (Defect.RUN, HEADER.run, came.header.run),
        (Defect.ROUND, (HEADER.round, HEADER.client), (came.header.round, came.header.client)),
        (Defect.CODEC, HEADER.codec, came.header.codec),
        (Defect.SIZE, HEADER.numel, came.header.numel),
    ):
        if want != got:
            raise PayloadError(defect, "")
    parts = {}
    for part in came.parts:
        if part.name in parts:
            raise PayloadError(Defect.DUPLICATE_PART, "")
        if part.name not in LAYOUT:
            raise PayloadError(Defect.EXTRA_PART, "")
        if part.numel != LAYOUT[part.name].numel:
            raise PayloadError(Defect.PART_SIZE, "")
        coded = coders.Coded(part.coder, part.data, part.table, part.parameter, part.ones)
        parts[part.name] = coders.decode(coded, LAYOUT[part.name], part.numel)
    if parts.keys() != LAYOUT.keys():
        raise PayloadError(Defect.MISSING_PART, "")
    return parts


def inspected_by_protobuf(data):
    h = (content := read_by_protobuf(data)).header
    if h.version != wire.VERSION:
        raise PayloadError(Defect.VERSION, "")
    head = wire.Header(h.fingerprint, h.run, h.round, h.client, h.codec, h.numel)
    return head, [(part.name, part.numel, len(part.data) + len(part.table)) for part in content.parts]


def outcome(call):
    """What comes of a call: a value, or the defect."""
    try:
        return call()
    except PayloadError as error:
        return error.defect


def assert_same(data):
    """Protobuf and the wire agree about a payload; what `unpack` made of it."""
    unpacked = outcome(lambda: all_bits(wire.unpack(data, HEADER, LAYOUT)))
    inspected = outcome(lambda: wire.inspect(data))
    if not isinstance(inspected, Defect):
        inspected = (inspected[0], [(size.name, size.numel, size.payload_bytes) for size in inspected[1]])
    for ours, theirs in (
        (unpacked, outcome(lambda: all_bits(unpacked_by_protobuf(data)))),
        (inspected, outcome(lambda: inspected_by_protobuf(data))),
    ):
        assert ours == theirs
    return unpacked


def varint(value, padding=0):
    """A number, in more bytes than it needs where `padding` is not 0."""
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


mostly_none = st.sampled_from([0] * 40 + [1, 2, 3, 4, 5, 8, 9])
numbers = st.sampled_from([*range(1, 9), *range(1, 9), 0, 15, 16, 2**29 - 1, 2**29, 2**32])
values = st.sampled_from([0, 1, 2, 3, 127, 128, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 2**64, 2**70 - 1])


@st.composite
def fields(draw, depth=2):
    """One field, of any number and kind, which protobuf may or may not take."""
    number, kind = draw(numbers), draw(st.sampled_from([0, 0, 1, 2, 2, 2, 3, 5] * 4 + [4, 6, 7]))
    tag = varint(number << 3 | kind, draw(mostly_none))
    match kind:
        case 0:
            return tag + varint(draw(values), draw(mostly_none))
        case 1 | 5:
            size = 8 if kind == 1 else 4
            return tag + bytes(draw(st.sampled_from([size] * 9 + [size - 1])))
        case 2:
            inner = b"".join(draw(st.lists(fields(depth - 1), max_size=2))) if depth else draw(st.binary(max_size=5))
            wrong = draw(st.sampled_from([0] * 30 + [1, 2, 100, 2**31 - 1, 2**31, 2**32]))
            return tag + varint(len(inner) + wrong, draw(mostly_none)) + inner
        case 3:
            inner = b"".join(draw(st.lists(fields(depth - 1), max_size=2))) if depth else b""
            ends = varint(draw(st.sampled_from([number] * 9 + [number + 1])) << 3 | 4, draw(mostly_none))
            return tag + inner + draw(st.sampled_from([ends] * 9 + [b""]))
    return tag


@st.composite
def messages(draw, known):
    """The known fields of a message, now and then one too few, twice or elsewhere, and others between them."""
    out = list(known)
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(out)))
        match draw(st.integers(0, 5)):
            case 0 if out:
                del out[at % len(out)]
            case 1 if out:
                out.append(out[at % len(out)])
            case 2 if out:
                out.append(out.pop(at % len(out)))
            case _:
                out.insert(at, draw(fields()))
    return out


def delimited(number, body, padding=(0, 0)):
    return varint(number << 3 | 2, padding[0]) + varint(len(body), padding[1]) + body


def each_field(message):
    """The serialised fields of a message, one by one."""
    return [type(message)(**{field.name: value}).SerializeToString() for field, value in message.ListFields()]


@st.composite
def contents(draw):
    """Contents that are nearly those of `PARTS`, and of which protobuf takes a good part."""
    heads = [draw(messages(each_field(CONTENT.header)))]
    if draw(st.integers(0, 3)) == 0:
        cut = draw(st.integers(0, len(heads[0])))
        heads = [heads[0][:cut], heads[0][cut:]]
    paddings = st.tuples(mostly_none, mostly_none)
    whole = [delimited(1, b"".join(head), draw(paddings)) for head in heads]
    whole += [delimited(2, b"".join(draw(messages(each_field(part)))), draw(paddings)) for part in CONTENT.parts]
    body = b"".join(draw(messages(whole)))
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 2]))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 2)) :]
    return body


@given(contents())
@thorough
def test_contents_of_any_fields(content):
    assert_same(sealed(content))


@given(st.binary(max_size=120))
@thorough
def test_any_bytes_as_content(content):
    assert_same(sealed(content))


@given(st.data())
@thorough
def test_envelopes_of_any_fields(data):
    body = CONTENT.SerializeToString(deterministic=True)
    digest = data.draw(st.sampled_from([hashlib.sha256(body).digest()] * 5 + [bytes(32), b"", bytes(31), bytes(33)]))
    paddings = st.tuples(mostly_none, mostly_none)
    known = [delimited(1, digest, data.draw(paddings)), delimited(2, body, data.draw(paddings))]
    assert_same(b"".join(data.draw(messages(known))))
    assert_same(data.draw(st.binary(max_size=60)))


def with_more(fields, level):
    """The content with more fields at the end of itself, of its header or of its second part."""
    body = b"" if level == "content" else fields
    parts = [part.SerializeToString() + body * (level == "part" and i == 1) for i, part in enumerate(CONTENT.parts)]
    head = CONTENT.header.SerializeToString() + body * (level == "header")
    return delimited(1, head) + b"".join(delimited(2, part) for part in parts) + fields * (level == "content")


def nested(depth):
    return b"\xfb\x07" * depth + b"\xfc\x07" * depth


@pytest.mark.parametrize(
    ("level", "depth"),
    [*((level, depth) for level in ("content", "part") for depth in (1, 2, 30)), ("content", 31)]
    + [("header", depth) for depth in (1, 97, 98, 99, 100, 101, 102)],
)
def test_groups_inside_groups(level, depth):
    came = assert_same(sealed(with_more(nested(depth), level)))
    assert (came == all_bits(PARTS)) == (depth < 100)


@pytest.mark.parametrize("padding", range(11))
@pytest.mark.parametrize("more", [0, 1, 2**31, 2**32, 2**63, 2**64, 2**64 + 1, 2**69])
def test_lengths_of_any_size_and_of_any_number_of_bytes(more, padding):
    head, *parts = [message.SerializeToString() for message in (CONTENT.header, *CONTENT.parts)]
    whole = [delimited(2, part) for part in parts]
    name, coder, numel, data = each_field(CONTENT.parts[0])
    accepted = more in (0, 2**64, 2**69) and len(varint(len(head) + more, padding)) < 11
    for written in (
        [b"\x0a" + varint(len(head) + more, padding) + head, *whole],
        [delimited(1, head), b"\x12" + varint(len(parts[0]) + more, padding) + parts[0], *whole[1:]],
        [
            delimited(1, head),
            delimited(2, name + coder + numel + b"\x22" + varint(12 + more, padding) + data[2:]),
            *whole[1:],
        ],
        [delimited(1, head), *whole, b"\x1a" + varint(5 + more, padding) + bytes(5)],
    ):
        assert (assert_same(sealed(b"".join(written))) == all_bits(PARTS)) == accepted


@pytest.mark.parametrize("field", [b"\x48\x01", b"\x4a\x00", b"\x4d" + bytes(4), b"\x49" + bytes(8)], ids=bytes.hex)
@pytest.mark.parametrize(
    ("level", "most", "defect"), [("content", 63, Defect.EXTRA_PART), ("part", 60, Defect.MALFORMED)]
)
def test_more_fields_than_protobuf_would_mind(level, most, defect, field):
    assert assert_same(sealed(with_more(field * most, level))) == all_bits(PARTS)
    for more in (field * (most + 1), field + nested(most // 2 + 1), b"\xfb\x07" + field * (most - 1) + b"\xfc\x07"):
        assert outcome(lambda more=more: wire.unpack(sealed(with_more(more, level)), HEADER, LAYOUT)) == defect
    assert assert_same(sealed(with_more(field * 100, "header"))) == all_bits(PARTS)


@given(st.lists(st.sampled_from([0, 1, 31, 32, 120, 127, 128, 129, 16_000, 16_383, 16_384, 2_097_152]), max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_what_is_packed_is_what_protobuf_writes(sizes):
    parts = {f"é{i}" * (size % 130): Numbers(np.arange(size).astype(np.uint8)) for i, size in enumerate(sizes)}
    data = wire.pack(HEADER, parts)
    assert sealed(content_of(data)) == data
    assert outcome(lambda: inspected_by_protobuf(data))[0] == wire.inspect(data)[0] == HEADER
