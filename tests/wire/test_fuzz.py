"""Whatever bytes come, only a PayloadError comes out, soon and in little memory."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import wire
from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import (
    SRHT,
    Ferret,
    Field,
    Identity,
    LogByte,
    LowRank,
    Numbers,
    Plane,
    Symbols,
    Ternary,
    Uniform,
    per_slot,
)
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import rans, rice, tables
from tests.codecs.examples import CONTEXT, SPACE, Ranking, all_bits, normal
from tests.codecs.examples import header as header_of
from tests.wire.crafting import altered, field_of, header, packed, plane, sealed

CODECS = [
    Identity(),
    Identity("bfloat16"),
    Ternary(),
    Uniform(2),
    Uniform(8),
    SRHT(density=0.3),
    SRHT(density=0.3, dtype="float16"),
    Ferret(10, dtype="logbyte"),
    LogByte(),
    LowRank(2),
    LowRank(3, energy=0.9),
    Ranking(),
    per_slot({"lora_A": Uniform(4)}, default=Ternary(0.5)),
]
DRAW = np.random.default_rng(0)
PARTS = {
    "bits": plane(np.flatnonzero(DRAW.random(301) < 0.5), 301),
    "classes": plane(np.flatnonzero(DRAW.random(3001) < 0.2), 3001),
    "rans": Plane(DRAW.choice(np.array([0x0F, 0xF0], np.uint8), 500), 4000),
    "rice": plane(np.flatnonzero(DRAW.random(9999) < 0.003), 9999),
    "trits": Symbols((DRAW.random(999) < 0.1).astype(np.uint8), 3),
    "wide": Symbols(DRAW.integers(0, 255, 101).astype(np.uint8), 255),
    "number": Numbers(DRAW.standard_normal(9).astype(np.float32)),
    "order": Numbers(DRAW.permutation(9).astype(np.int16)),
}
LAYOUT = {name: field_of(part) for name, part in PARTS.items()}
LAYOUT["rice"] = Field("plane", 9999, ragged=True)
LAYOUT["order"] = Field("numbers", 9, dtype="int16", permutation=True)
HEADER = header(77)
WHOLE = wire.pack(HEADER, PARTS)

bounded = settings(max_examples=400, deadline=None, derandomize=True, database=None)


def accepted(data, expected=HEADER, layout=LAYOUT):
    """The parts, or None where they are refused as they should be."""
    try:
        wire.inspect(data)
    except PayloadError as error:
        assert isinstance(error.defect, Defect)
    try:
        return wire.unpack(data, expected, layout)
    except PayloadError as error:
        assert isinstance(error.defect, Defect)
        return None


def follows(parts, layout):
    """What every codec may rely on."""
    assert parts.keys() == layout.keys()
    for name, field in layout.items():
        match parts[name]:
            case Plane(bits, numel):
                assert bits.size == -(-numel // 8) and not (numel % 8 and bits[-1] >> numel % 8)
            case Symbols(values, levels):
                numel = values.size
                assert levels == field.levels and values.max(initial=0) < levels
            case Numbers(values):
                numel = values.size
                assert values.dtype == field.dtype and (values.dtype.kind != "f" or np.isfinite(values).all())
                assert not field.permutation or sorted(values) == list(range(numel))
        assert numel == field.numel or (field.ragged and numel < field.numel)


@given(st.binary(max_size=600))
@bounded
def test_case_28_random_bytes(data):
    assert accepted(data) is None
    assert accepted(sealed(data)) is None


def test_case_28_many_random_bytes():
    draw = np.random.default_rng(0)
    for _ in range(5000):
        data = draw.bytes(int(draw.integers(0, 200)))
        assert accepted(data) is None
        assert accepted(sealed(data)) is None


@given(st.data())
@bounded
def test_random_bytes_as_content_of_the_right_shape(data):
    parts = [pb.Part(name=name, coder=data.draw(st.integers(0, 6)), numel=LAYOUT[name].numel) for name in LAYOUT]
    for part in parts:
        part.data = data.draw(st.binary(max_size=80))
        part.table = data.draw(st.sampled_from([b"", b"\0" * 18]) | st.binary(max_size=30))
        part.parameter = data.draw(st.sampled_from([0, 1, 8, 31, 32, 33, 2**32 - 1]))
        part.ones = data.draw(st.sampled_from([0, 1, 30, 9999, 2**63, 2**64 - 1]))
    content = pb.Content(header=pb.Content.FromString(pb.Payload.FromString(WHOLE).content).header, parts=parts)
    came = accepted(sealed(content))
    assert came is None or follows(came, LAYOUT) is None


def mutate(content, draw):
    """Change one thing of a content, at random, as somebody would who knows the format."""
    part = content.parts[int(draw.integers(len(content.parts)))]
    name = str(
        draw.choice(["data", "data", "data", "table", "numel", "coder", "parameter", "ones", "name", "part", "header"])
    )
    wild = [0, 1, 2, 7, 8, 9, 63, 64, 255, 2**16, 2**31 - 1, 2**32 - 1]
    match name:
        case "data" | "table":
            field = bytearray(getattr(part, name))
            at = int(draw.integers(len(field) + 1))
            match int(draw.integers(6)):
                case 0 if field:
                    field[at % len(field)] ^= 1 << int(draw.integers(8))
                case 1:
                    field[at:at] = draw.bytes(int(draw.integers(1, 9)))
                case 2:
                    del field[at : at + int(draw.integers(1, 9))]
                case 3:
                    field[at:] = bytes(len(field) - at)
                case 4:
                    field[at:] = b"\xff" * (len(field) - at)
                case _:
                    field[at : at + 8] = draw.bytes(len(field[at : at + 8]))
            setattr(part, name, bytes(field))
        case "numel" | "ones":
            near = [getattr(part, name) + d for d in (-8, -1, 1, 8) if getattr(part, name) + d >= 0]
            setattr(
                part, name, int(draw.choice(near)) if draw.random() < 0.5 else int(draw.choice([*wild, 2**40, 2**62]))
            )
        case "parameter":
            part.parameter = int(draw.choice([*wild, *range(40)]))
        case "coder":
            part.coder = int(draw.integers(-1, 8))
            if draw.random() < 0.5:
                part.table = b""
            if draw.random() < 0.5:
                part.parameter = part.ones = 0
        case "name":
            part.name = str(draw.choice([p.name for p in content.parts]))
        case "part":
            if draw.random() < 0.5:
                content.parts.append(part)
            else:
                content.parts.remove(part)
        case "header":
            content.header.numel += int(draw.integers(1, 3))


def mutations(data, count, seed):
    draw = np.random.default_rng(seed)

    def change(content):
        for _ in range(int(draw.integers(1, 4))):
            if content.parts:
                mutate(content, draw)

    for _ in range(count):
        yield altered(data, change)


def test_structured_mutations_with_a_right_checksum():
    seen, slowest, passed = set(), 0.0, 0
    for data in mutations(WHOLE, 6000, seed=1):
        began = time.perf_counter()
        try:
            follows(wire.unpack(data, HEADER, LAYOUT), LAYOUT)
            passed += 1
        except PayloadError as error:
            seen.add(error.defect)
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 2 and 0 < passed < 3000
    assert seen >= {
        Defect.SIZE, Defect.MISSING_PART, Defect.DUPLICATE_PART, Defect.PART_SIZE, Defect.CODER,
        Defect.TABLE, Defect.STREAM, Defect.PADDING, Defect.SYMBOL, Defect.COUNT, Defect.NON_FINITE,
    }  # fmt: skip


def test_structured_mutations_take_little_memory():
    altogether = sum(field.numel for field in LAYOUT.values())
    cases = list(mutations(WHOLE, 300, seed=2))
    for data in cases[:20]:
        accepted(data)
    tracemalloc.start()
    for data in cases:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        accepted(data)
        assert tracemalloc.get_traced_memory()[1] - before < 20 * altogether
    tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_passes_the_wire_decodes_to_a_finite_delta_or_is_refused(codec):
    data, expected, layout = (
        wire.pack(header_of(codec), codec.encode(normal(SPACE), SPACE, CONTEXT)),
        header_of(codec),
        codec.layout(SPACE),
    )
    decoded = 0
    for mutated in mutations(data, 1500, seed=3):
        parts = accepted(mutated, expected, layout)
        if parts is None:
            continue
        try:
            y = codec.decode(parts, SPACE, CONTEXT)
        except PayloadError as error:
            assert error.defect in (Defect.COUNT, Defect.NON_FINITE)
            continue
        assert y.shape == (SPACE.numel,) and torch.isfinite(y).all()
        decoded += 1
    assert decoded


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_truncation_at_every_byte_and_a_flip_in_every_byte(codec):
    data, expected, layout = (
        wire.pack(header_of(codec), codec.encode(normal(SPACE), SPACE, CONTEXT)),
        header_of(codec),
        codec.layout(SPACE),
    )
    for i in range(len(data)):
        assert accepted(data[:i], expected, layout) is None
        flipped = data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
        assert accepted(flipped, expected, layout) is None


@pytest.mark.parametrize("name", PARTS)
def test_every_bit_of_the_coded_bytes_flipped_behind_the_checksum(name):
    data, expected, layout = packed(PARTS[name], permutation=LAYOUT[name].permutation)
    part = pb.Content.FromString(pb.Payload.FromString(data).content).parts[0]
    same = 0
    for field in ("data", "table"):
        whole = getattr(part, field)
        for i in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[i // 8] ^= 1 << i % 8
            came = accepted(
                altered(data, lambda c, f=field, v=bytes(flipped): setattr(c.parts[0], f, v)), expected, layout
            )
            if came is not None:
                follows(came, layout)
                same += all_bits(came) == all_bits({"part": PARTS[name]})
    assert not same, "two encodings of one part"


@given(st.lists(st.integers(0, 255), max_size=300), st.integers(2, 256))
@bounded
def test_any_symbols_come_back(values, levels):
    part = Symbols(np.array([v % levels for v in values], np.uint8), levels)
    assert all_bits(wire.unpack(*packed(part))) == all_bits({"part": part})


@given(st.sets(st.integers(0, 20_000), max_size=60), st.integers(0, 7))
@bounded
def test_any_plane_comes_back(positions, spare):
    part = plane(sorted(positions), max(positions, default=0) + 1 + spare)
    assert all_bits(wire.unpack(*packed(part))) == all_bits({"part": part})


@given(st.binary(min_size=1, max_size=200), st.integers(0, 7))
@bounded
def test_any_bytes_as_a_plane_come_back(data, spare):
    bits = np.frombuffer(data, np.uint8).copy()
    bits[-1] &= 0xFF >> spare
    part = Plane(bits, 8 * len(data) - spare)
    assert all_bits(wire.unpack(*packed(part))) == all_bits({"part": part})


@given(st.data())
@bounded
def test_the_entropy_decoders_alone(data):
    raw = np.frombuffer(data.draw(st.binary(max_size=120)), np.uint8)
    n = data.draw(st.integers(0, 500))
    levels = data.draw(st.integers(1, 256))
    counts = np.bincount(data.draw(st.lists(st.integers(0, 255), max_size=30)), minlength=256)
    for call in (
        lambda: rice.decode(raw, data.draw(st.integers(0, 40)), n, data.draw(st.integers(0, 600))),
        lambda: rans.decode(raw, tables.normalise(counts.astype(np.int64)), n),
        lambda: tables.unpack_table(raw, levels),
    ):
        try:
            call()
        except PayloadError as error:
            assert isinstance(error.defect, Defect)
