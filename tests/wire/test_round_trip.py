"""Pack, then unpack, is the identity, for every kind of part and every coder; and what it costs."""

import numpy as np
import pytest
import torch

from fedpeft import wire
from fedpeft.codecs import Context, Field, Identity, Numbers, Plane, Symbols, Ternary, Uniform
from fedpeft.space import Slot, Space
from tests.codecs.examples import all_bits
from tests.codecs.examples import header as header_of
from tests.wire.crafting import coder, content_of, header, packed, plane

DRAW = np.random.default_rng(0)
MIXED = DRAW.choice(np.array([0x0F, 0xF0, 0x33, 0xAA], np.uint8), 5000, p=[0.7, 0.1, 0.1, 0.1])


def random_plane(share, numel, seed=0):
    return plane(np.flatnonzero(np.random.default_rng(seed).random(numel) < share), numel)


def symbols(levels, numel, skew, seed=0):
    weights = np.exp(-skew * np.abs(np.arange(levels) - levels // 2))
    values = np.random.default_rng(seed).choice(levels, numel, p=weights / weights.sum())
    return Symbols(values.astype(np.uint8), levels)


def plain_bytes(part):
    width = 1 if isinstance(part, Plane) else max(1, (part.levels - 1).bit_length())
    return -(-(part.numel if isinstance(part, Plane) else part.values.size) * width // 8)


def assert_round_trip(part):
    data, expected, layout = packed(part)
    came = wire.unpack(data, expected, layout)
    assert all_bits(came) == all_bits({"part": part})
    assert wire.pack(expected, came) == data
    assert len(data) <= wire.largest(layout, expected)
    return data


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (random_plane(0.5, 40_001), "bits"),
        (random_plane(0.5, 8), "bits"),
        (random_plane(0.2, 40_001), "rans_classes"),
        (random_plane(0.95, 40_001), "rans_classes"),
        (Plane(MIXED, 40_000), "rans"),
        (random_plane(0.005, 40_001), "rice"),
        (plane([0], 40_001), "rice"),
        (plane([40_000], 40_001), "rice"),
        (plane([0, 1, 2, 39_999, 40_000], 40_001), "rice"),
        (plane([], 40_001), "rans_classes"),
        (plane(np.arange(40_000), 40_000), "rans_classes"),
        (plane(np.arange(40_001), 40_001), "rans_classes"),
        (plane([], 0), "bits"),
        (plane([], 1), "bits"),
        (plane([0], 1), "bits"),
        (symbols(3, 10_001, 0), "rans"),
        (symbols(3, 10_001, 3), "rans"),
        (symbols(3, 50, 0), "bits"),
        (symbols(15, 10_001, 0), "rans"),
        (symbols(15, 10_001, 1), "rans"),
        (symbols(16, 10_001, 0), "bits"),
        (symbols(255, 10_001, 0), "bits"),
        (symbols(255, 10_001, 0.05), "rans"),
        (symbols(256, 10_001, 0), "bits"),
        (symbols(256, 10_001, 1), "rans"),
        (symbols(2, 10_001, 0), "bits"),
        (Symbols(np.zeros(0, np.uint8), 3), "bits"),
        (Symbols(np.full(9999, 254, np.uint8), 255), "rans"),
        (Numbers(np.zeros(0, np.float32)), "raw"),
    ],
    ids=lambda value: (
        value
        if isinstance(value, str)
        else f"{type(value).__name__}{plain_bytes(value)}"
        if not isinstance(value, Numbers)
        else "Numbers0"
    ),
)
def test_every_coder(part, expected):
    assert coder(assert_round_trip(part)) == expected


@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_every_number_type(dtype):
    kind = np.dtype(dtype)
    least, most = (
        (np.finfo(kind).min, np.finfo(kind).max) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    )
    values = np.array([0, least, most, 1, 3], kind)
    data = assert_round_trip(Numbers(values))
    assert content_of(data).parts[0].data == values.astype(kind.newbyteorder("<")).tobytes()
    swapped = wire.pack(header(5), {"part": Numbers(values.astype(kind.newbyteorder(">")))})
    assert swapped == data, "numbers go little-endian whatever the machine"


@pytest.mark.parametrize("bits", [[0x80000000], [0x00000001], [0x807FFFFF, 0x00800000]])
def test_negative_zero_and_denormals_keep_their_bits(bits):
    assert_round_trip(Numbers(np.array(bits, np.uint32).view(np.float32)))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.0624, 0.063, 0.1, 0.3, 0.5, 0.52, 0.9, 1.0])
def test_no_plane_is_longer_than_its_bits(share):
    for numel in [*range(1, 70), 255, 1000, 1001, 4099, 20_003]:
        part = random_plane(share, numel, seed=numel)
        sizes = wire.inspect(assert_round_trip(part))[1]
        assert sizes[0].payload_bytes <= plain_bytes(part)


@pytest.mark.parametrize("levels", [2, 3, 5, 15, 17, 127, 255, 256])
@pytest.mark.parametrize("skew", [0, 0.02, 0.3, 3])
def test_no_symbols_are_longer_than_their_bits(levels, skew):
    for numel in [1, 2, 7, 8, 9, 63, 100, 333, 1000, 5001]:
        part = symbols(levels, numel, skew, seed=numel)
        sizes = wire.inspect(assert_round_trip(part))[1]
        assert sizes[0].payload_bytes <= plain_bytes(part)


def entropy(*shares):
    return -sum(p * np.log2(p) for p in shares if p)


@pytest.mark.parametrize(("density", "most"), [(0.5, 1.001), (0.2, 1.002), (0.05, 1.02), (0.005, 1.05)])
def test_ternary_payloads_are_near_the_entropy(density, most):
    space = Space((Slot("a", (1000, 1000), "lora_A"),))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(space.numel)).float()
    codec, ctx = Ternary(density), Context(0, 3, 2)
    parts = codec.encode(x, space, ctx)
    assert parts["sign"].numel == round(density * space.numel)
    data = wire.pack(header_of(codec, space, ctx), parts)
    floor = entropy(density, 1 - density) + density
    assert floor * 0.999 < 8 * len(data) / space.numel < floor * most + 0.002
    assert all_bits(wire.unpack(data, header_of(codec, space, ctx), codec.layout(space))) == all_bits(parts)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_payloads_are_near_the_entropy(bits):
    space = Space((Slot("a", (500, 400), "lora_A"),))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(space.numel)).float()
    codec, ctx = Uniform(bits), Context(0, 3, 2)
    parts = codec.encode(x, space, ctx)
    shares = np.bincount(parts["code"].values) / space.numel
    data = wire.pack(header_of(codec, space, ctx), parts)
    assert 8 * len(data) / space.numel < entropy(*shares) * 1.003 + 0.02


def test_the_framing_is_small():
    space = Space((Slot("a", (100,), "lora_A"),))
    ctx, codec = Context(0, 3, 2), Identity()
    data = wire.pack(header_of(codec, space, ctx), codec.encode(torch.ones(100), space, ctx))
    assert len(data) - 400 < 190


def test_inspect_tells_of_all_parts():
    parts = {"b": random_plane(0.5, 801), "a": Numbers(np.arange(3.0, dtype=np.float32)), "c": symbols(3, 999, 3)}
    data = wire.pack(header(7, codec="Any()"), parts)
    came, sizes = wire.inspect(data)
    assert came == header(7, codec="Any()")
    assert [(s.name, s.coder, s.numel) for s in sizes] == [("a", "raw", 3), ("b", "bits", 801), ("c", "rans", 999)]
    assert [s.payload_bytes for s in sizes[:2]] == [12, 101]
    assert 0 < len(data) - sum(s.payload_bytes for s in sizes) < 200


def test_a_ragged_part_may_be_shorter_but_not_longer():
    part = random_plane(0.5, 100)
    data = wire.pack(header(100), {"part": part})
    for most in (100, 101, 5000):
        layout = {"part": Field("plane", most, ragged=True)}
        assert all_bits(wire.unpack(data, header(100), layout)) == all_bits({"part": part})
