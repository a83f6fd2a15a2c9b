"""Large payloads: what is copied, how often, and how much memory stands beside them."""

import tracemalloc

import numpy as np
import pytest
import torch

from fedpeft import wire
from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Context, Identity, Numbers, Symbols, Uniform
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space
from fedpeft.wire import envelope
from tests.codecs.examples import all_bits
from tests.codecs.examples import header as header_of
from tests.wire.crafting import altered, content_of, header, packed, sealed

LARGE = Space((Slot("a", (2048, 2048), "lora_A"),))
X = torch.from_numpy(np.random.default_rng(0).standard_normal(LARGE.numel, np.float32))
CONTEXT = Context(round=3, client=2)
SCRATCH = 3 << 20  # bytes of the blocks that are worked on at a time
SMALL = 200_000
DTYPES = pytest.mark.parametrize("codec", [Identity(), Identity("float16"), Identity("bfloat16")], ids=repr)


def peak(call):
    """What a call gives, and the most bytes that Python and numpy held meanwhile beyond those held before."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@DTYPES
def test_the_payload_and_the_vector_are_all_there_is(codec):
    expected, layout = header_of(codec, LARGE, CONTEXT), codec.layout(LARGE)
    parts, encoding = peak(lambda: codec.encode(X, LARGE, CONTEXT))
    stored = parts["values"].values.nbytes
    assert encoding < (0 if codec.linear else stored) + SCRATCH
    data, packing = peak(lambda: wire.pack(expected, parts))
    assert packing < stored + SCRATCH
    came, unpacking = peak(lambda: wire.unpack(data, expected, layout))
    assert unpacking < SCRATCH
    vector, decoding = peak(lambda: codec.decode(came, LARGE, CONTEXT))
    assert decoding < 4 * LARGE.numel + SCRATCH
    assert peak(lambda: wire.inspect(data))[1] < SMALL
    assert torch.equal(vector, X.to(getattr(torch, codec.dtype)).float())


def test_what_is_decoded_is_nobody_elses():
    codec = Identity()
    for parts in (
        codec.encode(X, LARGE, CONTEXT),
        wire.unpack(
            wire.pack(header_of(codec, LARGE), codec.encode(X, LARGE, CONTEXT)),
            header_of(codec, LARGE),
            codec.layout(LARGE),
        ),
    ):
        codec.decode(parts, LARGE, CONTEXT).add_(1)
        assert torch.equal(codec.decode(parts, LARGE, CONTEXT), X)


def test_numbers_lie_in_the_payload_until_somebody_asks_for_his_own():
    data, expected, layout = packed(Numbers(np.arange(5, dtype=np.float32)))
    part = wire.unpack(data, expected, layout)["part"]
    assert isinstance(part, Numbers) and np.shares_memory(part.lent, np.frombuffer(data, np.uint8))
    assert not part.lent.flags.writeable and np.array_equal(part.lent, np.arange(5))
    assert part.values.flags.writeable and part.values.flags.aligned and part.values is part.values
    part.values[0] = 9
    assert part.lent[0] == 0 and wire.unpack(data, expected, layout)["part"].values[0] == 0


VIEWS = {
    "inside": lambda data: memoryview(b"ab" + data + b"c")[2:-1],
    "writable": lambda data: memoryview(bytearray(data)),
    "words": lambda data: memoryview(data).cast("H"),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_any_memory_are_read_like_bytes(view):
    cases = [packed(Numbers(np.arange(5, dtype=np.float64)), name="part" + more) for more in ("", "s", "ss")]
    data, expected, layout = next(case for case in cases if len(case[0]) % 2 == 0)
    assert all_bits(wire.unpack(view(data), expected, layout)) == all_bits(wire.unpack(data, expected, layout))
    assert wire.inspect(view(data)) == wire.inspect(data)


def test_a_view_of_nothing_is_no_payload():
    for call in (wire.inspect, lambda data: wire.unpack(data, header(), {})):
        with pytest.raises(PayloadError) as caught:
            call(memoryview(b""))
        assert caught.value.defect == Defect.EMPTY


@pytest.mark.parametrize("levels", [15, 100])
def test_plain_symbols_are_unpacked_without_a_copy_of_all(levels):
    values = np.random.default_rng(0).integers(0, levels, LARGE.numel).astype(np.uint8)
    width = (levels - 1).bit_length()
    bits = np.unpackbits(values[:, None], axis=1, bitorder="little")[:, :width]
    plain = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    data, expected, layout = packed(Symbols(values[:99_999], levels))
    few = altered(data, lambda content: set_plain(content.parts[0], plain[: -(-99_999 * width // 8)], 99_999 * width))
    assert np.array_equal(wire.unpack(few, expected, layout)["part"].values, values[:99_999])
    data, expected, layout = packed(Symbols(values, levels))
    whole = altered(data, lambda content: set_plain(content.parts[0], plain, LARGE.numel * width))
    came, unpacking = peak(lambda: wire.unpack(whole, expected, layout))
    assert np.array_equal(came["part"].values, values) and unpacking < LARGE.numel + SCRATCH


def set_plain(part, data, bits):
    """Code a part as plain bits, of which those past the last are zero."""
    data = bytearray(data)
    if bits % 8:
        data[-1] &= 0xFF >> 8 - bits % 8
    part.coder, part.data, part.table = 2, bytes(data), b""


@pytest.mark.parametrize("levels", [16, 128, 256])
def test_symbols_that_no_table_makes_shorter_take_little_memory_too(levels):
    part = Symbols((np.arange(LARGE.numel) % levels).astype(np.uint8), levels)
    data, packing = peak(lambda: packed(part))
    assert content_of(data[0]).parts[0].coder == 2 and packing < 3 * LARGE.numel + SCRATCH
    assert np.array_equal(wire.unpack(*data)["part"].values, part.values)


@pytest.mark.parametrize("where", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 20) + 5, LARGE.numel - 1])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_one_number_of_millions_that_is_not_finite(where, dtype, wrong):
    values = np.ones(LARGE.numel, dtype)
    values[where] = wrong
    case = packed(Numbers(values))
    with pytest.raises(PayloadError, match=f"number {where} is (nan|-inf)") as caught:
        wire.unpack(*case)
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("field", ["fingerprint", "codec", "name", "table"])
def test_nothing_but_the_data_of_parts_may_be_long(field):
    codec = Uniform(8)
    parts = codec.encode(torch.zeros(LARGE.numel), LARGE, CONTEXT)
    data, layout = wire.pack(header_of(codec, LARGE), parts), codec.layout(LARGE)
    long = b"x" * 3_000_000 if field in ("fingerprint", "table") else "x" * 3_000_000

    def change(content):
        setattr(content.parts[0] if field in ("name", "table") else content.header, field, long)

    def refuse():
        with pytest.raises(PayloadError, match="bytes beside the parts' data, got more") as caught:
            wire.unpack(bomb, header_of(codec, LARGE), layout)
        assert caught.value.defect == Defect.TOO_LARGE

    bomb = altered(data, change)
    refuse()
    assert peak(refuse)[1] < SMALL


def test_many_short_fields_take_no_more_memory_than_their_bytes():
    head = content_of(packed(Numbers(np.zeros(1, np.float32)))[0]).header
    part = pb.Part(name="part").SerializeToString() + b"\x48\x01" * 60
    data = sealed(pb.Content(header=head).SerializeToString() + (b"\x12" + bytes([len(part)]) + part) * 2000)
    (_, sizes), most = peak(lambda: wire.inspect(data))
    assert len(sizes) == 2000 and most < 6 * len(data)


@pytest.mark.parametrize("level", ["content", "part"])
def test_a_long_field_that_nobody_knows_is_stepped_over(level):
    codec = Uniform(8)
    data = wire.pack(header_of(codec, LARGE), codec.encode(torch.zeros(LARGE.numel), LARGE, CONTEXT))
    unknown, content = b"\x9a\x3f" + b"\xc0\x8d\xb7\x01" + bytes(3_000_000), content_of(data)
    if level == "part":
        content.parts[0].MergeFromString(unknown)
    grown = sealed(content.SerializeToString() + (unknown if level == "content" else b""))
    assert len(grown) > 3_000_000
    wire.unpack(grown, header_of(codec, LARGE), codec.layout(LARGE))
    assert wire.inspect(grown) == wire.inspect(data)
    assert peak(lambda: wire.inspect(grown))[1] < SMALL


def test_a_payload_that_no_protobuf_could_hold_is_not_written(monkeypatch):
    monkeypatch.setattr(envelope, "LONGEST", 1000)
    with pytest.raises(ValueError, match="a payload holds at most 1,000 bytes, got 1,"):
        wire.pack(header(), {"part": Numbers(np.zeros(1000, np.uint8))})
