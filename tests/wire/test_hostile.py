"""Each way in which a payload can be wrong, and the defect that names it.

The checksum of these payloads is right (but for truncation and flipped bits), so the checks behind it are reached.
"""

import hashlib
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from fedpeft import wire
from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Field, Identity, Numbers, Plane, Symbols, Ternary, Uniform
from fedpeft.errors import Defect, FedpeftError, PayloadError, SpaceError
from fedpeft.kernels import tables
from fedpeft.space import Slot, Space
from tests.codecs.examples import CONTEXT, LARGE, SPACE, Ranking, normal
from tests.codecs.examples import header as header_of
from tests.wire.crafting import altered, coder, content_of, header, packed, plane, sealed

NUMBERS = packed(Numbers(np.arange(5, dtype=np.float32)))
DENSE = packed(plane(np.arange(0, 1001, 2), 1001))
BYTES = packed(Plane(np.where(np.random.default_rng(0).random(600) < 0.8, 0x0F, 0xF0).astype(np.uint8), 4800))
CLASSES = packed(plane(np.flatnonzero(np.random.default_rng(0).random(4001) < 0.2), 4001))
RICE = packed(plane([7, 700, 9000, 9990], 9999))
SKEWED = packed(Symbols((np.random.default_rng(0).random(3001) < 0.1).astype(np.uint8), 3))
TRITS = packed(Symbols(np.array([0, 1, 2, 1, 0], np.uint8), 3))
CASES = [NUMBERS, DENSE, BYTES, CLASSES, RICE, SKEWED, TRITS]


def payload_of(codec, x=None, space=SPACE):
    x = normal(space) if x is None else x
    return wire.pack(header_of(codec, space), codec.encode(x, space, CONTEXT))


def decoded(codec, data, space=SPACE):
    return codec.decode(wire.unpack(data, header_of(codec, space), codec.layout(space)), space, CONTEXT)


def assert_refused(defect, case, change=None, match=None):
    """The payload of a case (payload, header, layout), changed and sealed again, is refused with this defect."""
    data, expected, layout = case
    with pytest.raises(PayloadError, match=match) as caught:
        wire.unpack(altered(data, change) if change else data, expected, layout)
    assert caught.value.defect == defect, str(caught.value)
    assert str(caught.value).startswith(f"{defect.value}: ")


def set_part(**fields):
    """A change of the first part's fields."""

    def change(content):
        for name, value in fields.items():
            setattr(content.parts[0], name, value)

    return change


def test_the_helpers_change_nothing_by_themselves():
    for data, expected, layout in CASES:
        assert altered(data, lambda content: None) == data
        wire.unpack(data, expected, layout)
    used = [coder(case[0]) for case in CASES]
    assert used == ["raw", "bits", "rans", "rans_classes", "rice", "rans", "bits"]


NON_FINITE = {"nan": float("nan"), "minus nan": -float("nan"), "inf": float("inf"), "minus inf": -float("inf")}


@pytest.mark.parametrize("name", NON_FINITE)
@pytest.mark.parametrize("codec", [Identity(), Identity("float16"), Ternary(), Uniform()], ids=repr)
def test_case_1_2_nan_and_infinity(codec, name):
    part = {"Identity": "values", "Ternary": "scale", "Uniform": "step"}[type(codec).__name__]
    kind = codec.layout(SPACE)[part].dtype

    def change(content):
        found = next(p for p in content.parts if p.name == part)
        values = np.frombuffer(found.data, kind).copy()
        values[-1] = NON_FINITE[name]
        found.data = values.tobytes()

    with pytest.raises(PayloadError, match=r"number \d+ is (nan|-?inf)") as caught:
        decoded(codec, altered(payload_of(codec), change))
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0x7F80, 0xFF80, 0x7F81])
def test_case_1_2_nan_and_infinity_as_bfloat16(bits):
    codec = Identity("bfloat16")

    def change(content):
        content.parts[0].data = bits.to_bytes(2, "little") + content.parts[0].data[2:]

    with pytest.raises(PayloadError) as caught:
        decoded(codec, altered(payload_of(codec), change))
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("step", [3e38, -3e38])
def test_case_2_a_finite_step_whose_multiples_are_not(step):
    def change(content):
        found = next(p for p in content.parts if p.name == "step")
        found.data = np.full(found.numel, step, "<f4").tobytes()

    with pytest.raises(PayloadError, match="127 steps of the largest are not finite") as caught:
        decoded(Uniform(8), altered(payload_of(Uniform(8)), change))
    assert caught.value.defect == Defect.NON_FINITE


@pytest.mark.parametrize("value", [1e-45, -1e-42, 3.4e38, -3.4e38])
def test_case_3_subnormal_and_huge_numbers_arrive_as_they_are_for_the_servers_norm_bound(value):
    x = torch.full((SPACE.numel,), value)
    assert torch.equal(decoded(Identity(), payload_of(Identity(), x)), x)


@pytest.mark.parametrize("numel", [0, 1, 4, 6, 10])
def test_case_4_another_shape(numel):
    data = np.zeros(numel, "<f4").tobytes()
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(numel=numel, data=data), f"expected 5 numbers, got {numel}")
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(data=data), f"expected 5 numbers of 4 bytes, got {4 * numel} ")
    assert_refused(Defect.PART_SIZE, DENSE, set_part(numel=numel), f"expected 1001 plane, got {numel}")
    assert_refused(Defect.PART_SIZE, TRITS, set_part(data=bytes(numel)), rf"expected 5 symbols .* got {numel} bytes")


def test_case_4_another_space():
    data = payload_of(Identity())
    for space in (LARGE, Space((Slot("a", (SPACE.numel,), "lora_A"),))):
        with pytest.raises(
            PayloadError, match=r"the space's fingerprint: expected [0-9a-f]{16}, got [0-9a-f]{16}"
        ) as caught:
            decoded(Identity(), data, space)
        assert caught.value.defect in (Defect.FINGERPRINT, Defect.TOO_LARGE)

    def change(content):
        content.header.numel += 1

    with pytest.raises(PayloadError, match=f"parameters: expected {SPACE.numel}, got {SPACE.numel + 1}") as caught:
        decoded(Identity(), altered(data, change))
    assert caught.value.defect == Defect.SIZE


def test_case_5_a_number_that_would_broadcast():
    one = np.ones(1, "<f4").tobytes()
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(numel=1, data=one))
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(data=one))


@pytest.mark.parametrize("dtype", ["<f2", "<f8", "<i8", "u1"])
def test_case_6_another_number_type(dtype):
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(data=np.zeros(5, dtype).tobytes()))


def test_case_6_another_byte_order_is_read_as_little_endian():
    data, expected, layout = NUMBERS
    swapped = altered(data, set_part(data=np.arange(5, dtype=">f4").tobytes()))
    assert not np.array_equal(wire.unpack(swapped, expected, layout)["part"].values, np.arange(5))


@pytest.mark.parametrize(
    ("case", "number"),
    [(NUMBERS, n) for n in (2, 3, 4, 5)]
    + [(DENSE, 1), (BYTES, 1), (CLASSES, 1), (RICE, 1), (SKEWED, 1), (TRITS, 1), (TRITS, 4), (TRITS, 5)],
)
def test_case_6_a_coder_of_another_kind_of_part(case, number):
    def change(content):
        part = content.parts[0]
        part.coder = number
        part.table = b""
        part.parameter = part.ones = 0

    assert_refused(Defect.CODER, case, change, f"coder {number} does not make (numbers|planes|symbols)")


def test_case_7_a_missing_part():
    data = payload_of(Ternary())
    for i, name in enumerate(sorted(Ternary().layout(SPACE))):
        with pytest.raises(PayloadError, match=rf"did not get \['{name}'\]") as caught:
            decoded(Ternary(), altered(data, lambda content, i=i: content.parts.__delitem__(i)))
        assert caught.value.defect == Defect.MISSING_PART
    assert_refused(Defect.MISSING_PART, NUMBERS, lambda content: content.ClearField("parts"))


@pytest.mark.parametrize("name", ["other", "", "Part", "part\0", "x" * 300, "pаrt"])
def test_case_8_an_extra_part(name):
    assert_refused(
        Defect.EXTRA_PART, NUMBERS, lambda content: content.parts.add(name=name), r"is not one of \['part'\]"
    )
    assert_refused(Defect.EXTRA_PART, NUMBERS, set_part(name=name))


def test_case_15_a_flood_of_empty_parts_is_counted_before_it_is_parsed():
    """Two bytes a part on the wire, about ninety in memory: refused from the tags alone."""
    codec, space = Identity(), Space((Slot("a", (1 << 19,), "lora_A"),))
    header_only = pb.Content(header=content_of(payload_of(codec, space=space)).header).SerializeToString()
    flood = sealed(header_only + b"\x12\x00" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError) as caught:
            decoded(codec, flood, space)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(flood)
    finally:
        tracemalloc.stop()
    assert caught.value.defect == Defect.EXTRA_PART


def test_case_9_a_part_that_comes_twice():
    assert_refused(
        Defect.DUPLICATE_PART, NUMBERS, lambda content: content.parts.append(content.parts[0]), "'part' came twice"
    )
    assert_refused(Defect.DUPLICATE_PART, NUMBERS, lambda content: content.parts.extend([content.parts[0]] * 6))


def test_case_10_nothing():
    expected, layout = NUMBERS[1:]
    assert_refused(Defect.EMPTY, (b"", expected, layout))
    assert_refused(Defect.CHECKSUM, (pb.Payload(checksum=b"\0" * 32).SerializeToString(), expected, layout))
    assert_refused(Defect.VERSION, (sealed(b""), expected, layout), match="version: expected 1, got 0")
    assert_refused(Defect.PART_SIZE, NUMBERS, set_part(data=b""))
    for case in (BYTES, CLASSES, RICE, SKEWED):
        assert_refused(Defect.COUNT if case is RICE else Defect.STREAM, case, set_part(data=b""))


@pytest.mark.parametrize("case", CASES, ids=lambda case: coder(case[0]))
def test_case_11_truncated_at_every_byte(case):
    data, expected, layout = case
    for length in range(len(data)):
        with pytest.raises(PayloadError) as caught:
            wire.unpack(data[:length], expected, layout)
        assert caught.value.defect in (Defect.EMPTY, Defect.MALFORMED, Defect.CHECKSUM)


@pytest.mark.parametrize("case", CASES, ids=lambda case: coder(case[0]))
def test_case_11_coded_bytes_and_table_truncated_at_every_byte(case):
    part = content_of(case[0]).parts[0]
    for length in range(len(part.data)):
        short = altered(case[0], set_part(data=part.data[:length]))
        with pytest.raises(PayloadError) as caught:
            wire.unpack(short, *case[1:])
        assert caught.value.defect in (Defect.PART_SIZE, Defect.STREAM, Defect.COUNT)
    for length in range(len(part.table)):
        assert_refused(Defect.TABLE, case, set_part(table=part.table[:length]))


@pytest.mark.parametrize("case", [NUMBERS, RICE, TRITS], ids=lambda case: coder(case[0]))
def test_case_12_every_bit_flipped(case):
    data, expected, layout = case
    for i in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        with pytest.raises(PayloadError) as caught:
            wire.unpack(bytes(flipped), expected, layout)
        assert caught.value.defect in (Defect.CHECKSUM, Defect.MALFORMED)


@pytest.mark.parametrize("tail", [b"\0", b"\x18\x01", b"\x0a\x00", b"\x12\x00", bytes(50)])
def test_case_13_bytes_beside_the_envelope(tail):
    data, expected, layout = NUMBERS
    for both in (data + tail, tail + data):
        with pytest.raises(PayloadError) as caught:
            wire.unpack(both, expected, layout)
        assert caught.value.defect in (Defect.MALFORMED, Defect.CHECKSUM)
    assert_refused(Defect.MALFORMED, (data + b"\x18\x01", expected, layout), match="bytes stand beside")
    content, checksum = pb.Payload.FromString(data).content, pb.Payload.FromString(data).checksum
    other_order = b"\x12" + pb.Payload(content=content).SerializeToString()[1:] + b"\x0a\x20" + checksum
    assert pb.Payload.FromString(other_order) == pb.Payload.FromString(data)
    assert_refused(Defect.MALFORMED, (other_order, expected, layout), match="bytes stand beside")


@pytest.mark.parametrize("case", CASES, ids=lambda case: coder(case[0]))
@pytest.mark.parametrize("tail", [b"\0", b"\1", bytes(2), bytes(16)])
def test_case_13_bytes_behind_the_coded_ones(case, tail):
    with pytest.raises(PayloadError) as caught:
        wire.unpack(
            altered(case[0], lambda content: setattr(content.parts[0], "data", content.parts[0].data + tail)), *case[1:]
        )
    assert caught.value.defect in (Defect.PART_SIZE, Defect.STREAM, Defect.COUNT, Defect.PADDING)


def test_case_13_padding_bits_are_zero():
    assert_refused(Defect.PADDING, TRITS, set_part(data=b"\x64\x80"), "past the last of 5 symbols")
    full = packed(plane([0], 3))
    assert_refused(Defect.PADDING, full, set_part(data=b"\x09"), "past the last of 3 are set")
    assert_refused(Defect.PADDING, full, set_part(coder=5, data=b"\x09", ones=1, parameter=0))


def test_case_14_more_bytes_than_any_encoding_has():
    data, expected, layout = NUMBERS
    most = wire.largest(layout, expected)
    assert_refused(
        Defect.TOO_LARGE,
        (data + bytes(most), expected, layout),
        match=f"at most {most} bytes .* got {len(data) + most}",
    )
    assert_refused(Defect.TOO_LARGE, (bytes(most + 1), expected, layout))
    assert_refused(Defect.TOO_LARGE, NUMBERS, set_part(data=bytes(10_000)))


@pytest.mark.parametrize(
    "length", [b"\x7f", b"\xff\xff\x03", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_case_14_a_declared_length_beyond_the_bytes(length):
    expected, layout = NUMBERS[1:]
    for data in (b"\x0a" + length, b"\x12" + length + b"abc", b"\x0a\x00\x12" + length):
        assert_refused(Defect.MALFORMED, (data, expected, layout))
    for body in (b"\x0a" + length, b"\x12" + length + b"\x0a\x04part"):
        assert_refused(Defect.MALFORMED, (sealed(body), expected, layout), match="the content is not readable")


def peak_bytes(call):
    """Most memory that Python and numpy hold at once during a call that must refuse."""
    with pytest.raises(FedpeftError):
        call()
    tracemalloc.start()
    try:
        with pytest.raises(FedpeftError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("numel", [10**6, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("case", CASES, ids=lambda case: coder(case[0]))
def test_case_15_17_a_bomb_of_declared_numbers(case, numel):
    bomb = altered(case[0], set_part(numel=numel))
    assert_refused(Defect.PART_SIZE, (bomb, *case[1:]), match=f"got {numel}")
    assert peak_bytes(lambda: wire.unpack(bomb, *case[1:])) < 200_000
    ragged = {"part": Field(case[2]["part"].kind, case[2]["part"].numel, ragged=True, levels=case[2]["part"].levels)}
    assert_refused(Defect.PART_SIZE, (bomb, case[1], ragged), match="expected at most")


def test_case_15_a_few_bytes_become_no_more_than_the_receiver_expects():
    numel = 8_000_000
    data, expected, layout = packed(plane([], numel))
    assert len(data) < 200
    tracemalloc.start()
    wire.unpack(data, expected, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * numel / 8
    longer = altered(data, set_part(numel=8 * numel))
    assert peak_bytes(lambda: wire.unpack(longer, expected, layout)) < 200_000


@pytest.mark.parametrize("ones", [8, 1001, 10**6, 2**32, 2**63, 2**64 - 1])
def test_case_15_17_a_bomb_of_declared_ones(ones):
    assert_refused(Defect.COUNT, RICE, set_part(ones=ones, parameter=32))
    assert peak_bytes(lambda: wire.unpack(altered(RICE[0], set_part(ones=ones, parameter=32)), *RICE[1:])) < 200_000


def test_case_15_many_parts_are_bounded_by_the_cap():
    def change(content):
        for i in range(100_000):
            content.parts.add(name=f"{i}")

    bomb = altered(NUMBERS[0], change)
    assert_refused(Defect.TOO_LARGE, (bomb, *NUMBERS[1:]))
    assert peak_bytes(lambda: wire.unpack(bomb, *NUMBERS[1:])) < 200_000


class Executed:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_case_16_npy_and_pickle():
    npy = io.BytesIO()
    np.save(npy, np.array([Executed()], dtype=object), allow_pickle=True)
    huge = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}".ljust(128)
    torch_file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, torch_file)
    for data in (npy.getvalue(), huge, pickle.dumps(Executed()), torch_file.getvalue()[:700]):
        with pytest.raises(PayloadError) as caught:
            wire.unpack(data, *NUMBERS[1:])
        assert caught.value.defect in (Defect.MALFORMED, Defect.CHECKSUM, Defect.TOO_LARGE)
        assert_refused(Defect.PART_SIZE, NUMBERS, set_part(data=data[:300]))
        with pytest.raises(PayloadError) as caught:
            wire.unpack(sealed(data[:300]), *NUMBERS[1:])
        assert caught.value.defect in (Defect.MALFORMED, Defect.VERSION)


@pytest.mark.parametrize("shape", [[2**62], [2**31, 2**31], [2**64, 3], [10**30], [10**9] * 50])
def test_case_17_a_space_of_huge_dimensions_is_only_text(shape):
    text = f'{{"base":"","config":"","slots":[["a",{shape},"lora_A"]]}}'
    space = Space.from_json(text)
    assert space.numel == np.prod(np.array(shape, dtype=object))
    with pytest.raises(SpaceError, match="slot"):
        SPACE.check(space)
    assert peak_bytes(lambda: SPACE.check(Space.from_json(text))) < 200_000


def test_case_18_negative_dimensions():
    # A negative number of protobuf's int64 is ten bytes, which uint64 reads as 2^64 - 1.
    minus_one = b"\x18" + b"\xff" * 9 + b"\x01"
    body = content_of(NUMBERS[0]).header.SerializeToString()
    part = b"\x0a\x04part\x10\x01" + minus_one
    content = b"\x0a" + bytes([len(body)]) + body + b"\x12" + bytes([len(part)]) + part
    assert_refused(Defect.PART_SIZE, (sealed(content), *NUMBERS[1:]), match=f"got {2**64 - 1}")
    for shape in ("[-1]", "[-1,-1]", "[3,-2]", f"[-{2**63}]"):
        with pytest.raises(SpaceError, match="a dimension is no whole number"):
            Space.from_json(f'{{"base":"","config":"","slots":[["a",{shape},"lora_A"]]}}')


@pytest.mark.parametrize("data", [b"\0", bytes(8), bytes(15), bytes(16), bytes(64), bytes(1000)])
@pytest.mark.parametrize("parameter", [0, 7, 11, 32])
def test_case_19_an_endless_unary_run(data, parameter):
    defect = Defect.COUNT if 1 + parameter > 8 * len(data) else Defect.STREAM
    assert_refused(defect, RICE, set_part(data=data, parameter=parameter, ones=1))


@pytest.mark.parametrize(
    ("parameter", "ones", "data"),
    [
        (32, 1, (2**33 - 1).to_bytes(5, "little")),  # a gap of 2^32 - 1
        (14, 1, ((9999 << 1) | 1).to_bytes(2, "little")),  # the first index past the last
        (14, 2, ((9998 << 1 | 1) | (1 << 15)).to_bytes(4, "little")),  # the last index, and one more
        (0, 1, (1 << 9999).to_bytes(1250, "little")),
    ],
)
def test_case_20_a_set_bit_past_the_last(parameter, ones, data):
    assert_refused(
        Defect.STREAM, RICE, set_part(parameter=parameter, ones=ones, data=data), "(past coordinate|ends inside)"
    )


def test_case_20_the_count_is_the_streams():
    assert_refused(Defect.COUNT, RICE, set_part(ones=1), "goes on after 1 gaps")
    assert_refused(Defect.COUNT, RICE, set_part(ones=6), "6 set bits do not fit")
    assert_refused(Defect.TABLE, RICE, set_part(parameter=33), "Rice parameter: expected 0 to 32, got 33")
    assert_refused(Defect.TABLE, RICE, set_part(parameter=2**32 - 1))


def table_of(**frequencies):
    freq = np.zeros(256, np.uint32)
    for symbol, value in frequencies.items():
        freq[int(symbol[1:])] = value
    return freq


def test_case_21_a_bad_table():
    part = content_of(SKEWED[0]).parts[0]
    for table in (b"", b"\0\0", b"\xff" * 3, b"\xff" * 7, b"\xff" * 1000, part.table[:-1]):
        assert_refused(Defect.TABLE, SKEWED, set_part(table=table))
    assert_refused(Defect.PADDING, SKEWED, set_part(table=part.table + b"\0"))
    wrong = tables.pack_table(table_of(s0=2**14 - 1, s1=1), 3).tobytes()
    assert_refused(Defect.STREAM, SKEWED, set_part(table=wrong))
    unused = tables.pack_table(table_of(s0=2**13, s2=2**13), 3).tobytes()
    assert_refused(Defect.STREAM, SKEWED, set_part(table=unused))


def test_case_21_a_table_beyond_the_alphabet():
    wide = tables.pack_table(table_of(s0=2**13, s200=2**13), 256).tobytes()
    with pytest.raises(PayloadError) as caught:
        wire.unpack(altered(SKEWED[0], set_part(table=wide)), *SKEWED[1:])
    assert caught.value.defect in (Defect.TABLE, Defect.PADDING)


@pytest.mark.parametrize(
    "masses",
    [
        [0] * 9,
        [2**14] + [1] * 8,
        [1] * 9,
        [2**14 - 7, 7, 0, 0, 0, 0, 0, 0, 0],
        [65535] * 9,
        [2**14 - 1, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
)
def test_case_21_bad_classes(masses):
    assert_refused(Defect.TABLE, CLASSES, set_part(table=np.array(masses, "<u2").tobytes()))
    assert_refused(Defect.TABLE, CLASSES, set_part(table=bytes(20)), "18 bytes, got 20")


@pytest.mark.parametrize("case", [DENSE, BYTES, SKEWED, TRITS, NUMBERS], ids=lambda case: coder(case[0]))
def test_case_21_a_setting_of_another_coder(case):
    assert_refused(Defect.CODER, case, set_part(parameter=1), "a Rice parameter came with another coder")
    assert_refused(Defect.CODER, case, set_part(ones=1), "a Rice parameter came with another coder")
    if case in (DENSE, TRITS, NUMBERS):
        assert_refused(Defect.CODER, case, set_part(table=b"\1"), "a frequency table came with a coder that has none")
    assert_refused(Defect.CODER, RICE, set_part(table=b"\1"), "a frequency table came with a coder that has none")


@pytest.mark.parametrize("case", [BYTES, CLASSES, SKEWED], ids=lambda case: coder(case[0]))
def test_case_22_a_wrong_final_state(case):
    data = content_of(case[0]).parts[0].data
    for wrong in (
        data[:-2],
        data + bytes(2),
        bytes(32),
        bytes(32) + data[32:],
        b"\xff" * len(data),
        data[:33],
        data[:30],
    ):
        if wrong != data:
            assert_refused(Defect.STREAM, case, set_part(data=wrong))
    for lane in range(8):
        state = int.from_bytes(data[4 * lane : 4 * lane + 4], "little") ^ (1 << 20)
        assert_refused(
            Defect.STREAM, case, set_part(data=data[: 4 * lane] + state.to_bytes(4, "little") + data[4 * lane + 4 :])
        )


def test_case_23_a_symbol_beyond_the_alphabet():
    assert_refused(Defect.SYMBOL, TRITS, set_part(data=b"\x67\x00"), "symbol 3 in an alphabet of 3")
    assert_refused(Defect.SYMBOL, TRITS, set_part(data=b"\xff\x03"), "symbol 3 in an alphabet of 3")
    bytewise = packed(Symbols(np.arange(50, dtype=np.uint8), 200))
    assert coder(bytewise[0]) == "bits"
    assert_refused(Defect.SYMBOL, bytewise, set_part(data=bytes(49) + b"\xc8"), "symbol 200 in an alphabet of 200")


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 3], [1, 2, 3, 4, 5], [-1, 0, 1, 2, 3], [0, 0, 0, 0, 0], [0, 1, 2, 3, 2**31 - 1]]
)
def test_case_24_a_ranking_that_is_no_permutation(order):
    case = packed(Numbers(np.array([4, 2, 0, 1, 3], np.int32)), permutation=True)
    wire.unpack(*case)
    assert_refused(
        Defect.SYMBOL, case, set_part(data=np.array(order, "<i4").tobytes()), "the numbers 0 to 4 in some order"
    )


def test_case_24_in_a_plug_ins_payload():
    def change(content):
        part = next(p for p in content.parts if p.name == "order")
        part.data = part.data[4:8] + part.data[4:]

    with pytest.raises(PayloadError) as caught:
        decoded(Ranking(), altered(payload_of(Ranking()), change))
    assert caught.value.defect == Defect.SYMBOL


@pytest.mark.parametrize("count", [-9, -1, 1])
def test_case_25_a_mask_and_signs_that_do_not_fit(count):
    parts = dict(Ternary().encode(normal(SPACE), SPACE, CONTEXT))
    n = parts["sign"].numel + count
    parts["sign"] = Plane(np.zeros(-(-n // 8), np.uint8), n)
    with pytest.raises(PayloadError, match=f"the mask keeps {n - count} coordinates, but {n} signs came") as caught:
        decoded(Ternary(), wire.pack(header_of(Ternary()), parts))
    assert caught.value.defect == Defect.COUNT


@pytest.mark.parametrize(
    ("defect", "fields", "match"),
    [
        (Defect.VERSION, {"version": 2}, "version: expected 1, got 2"),
        (Defect.VERSION, {"version": 0}, "version: expected 1, got 0"),
        (Defect.FINGERPRINT, {"fingerprint": b""}, "fingerprint: expected 0001020304050607, got "),
        (
            Defect.FINGERPRINT,
            {"fingerprint": bytes(32)},
            "fingerprint: expected 0001020304050607, got 0000000000000000",
        ),
        (Defect.RUN, {"run": bytes(16)}, "run: expected"),
        (Defect.RUN, {"run": bytes(range(17))}, "run: expected"),
        (Defect.ROUND, {"round": 2}, "round: expected 3, got 2"),
        (Defect.ROUND, {"round": 4}, "round: expected 3, got 4"),
        (Defect.ROUND, {"client": 1}, "client: expected 2, got 1"),
        (Defect.CODEC, {"codec": ""}, r"codec: expected 'Ternary\(\)', got ''"),
        (Defect.CODEC, {"codec": "Identity()"}, r"codec: expected 'Ternary\(\)', got 'Identity\(\)'"),
        (Defect.SIZE, {"numel": 2**64 - 1}, "parameters: expected 5, got 18446744073709551615"),
    ],
)
def test_case_27_29_to_32_a_header_of_something_else(defect, fields, match):
    def change(content):
        for name, value in fields.items():
            setattr(content.header, name, value)

    assert_refused(defect, NUMBERS, change, match)


def test_case_27_a_long_codec_is_not_printed_whole():
    def change(content):
        content.header.codec = "x" * 600

    assert_refused(Defect.CODEC, NUMBERS, change)


@pytest.mark.parametrize("number", [0, 6, 99, 2**31 - 1, -1])
@pytest.mark.parametrize("case", [NUMBERS, DENSE, TRITS], ids=lambda case: coder(case[0]))
def test_case_27_an_unknown_coder(case, number):
    def change(content):
        content.parts[0].coder = number
        content.parts[0].table = b""

    assert_refused(Defect.CODER, case, change, f"coder {number} does not make")


UNKNOWN = [
    b"\xf8\x07\x01",
    b"\xfa\x07\x03abc",
    b"\xfd\x07\x00\x00\x00\x00",
    b"\xf9\x07" + bytes(8),
    b"\xfb\x07\xfc\x07",
]


@pytest.mark.parametrize("field", UNKNOWN)
def test_case_27_unknown_fields_inside_the_content_are_ignored(field):
    data, expected, layout = NUMBERS
    content = content_of(data)
    body = content.SerializeToString(deterministic=True)
    inner_header = content.header.SerializeToString() + field
    inner_part = content.parts[0].SerializeToString() + field
    nested = b"\x0a" + bytes([len(inner_header)]) + inner_header + b"\x12" + bytes([len(inner_part)]) + inner_part
    for grown in (body + field, field + body, nested):
        came = wire.unpack(sealed(grown), expected, layout)
        assert np.array_equal(came["part"].values, np.arange(5))
        assert wire.inspect(sealed(grown)) == wire.inspect(data)
    assert_refused(Defect.MALFORMED, (data + field, expected, layout))


def test_case_27_text_that_is_no_utf8():
    data, expected, layout = NUMBERS
    body = (
        content_of(data)
        .SerializeToString()
        .replace(b"Ternary()", b"Ternar\xff\xff\xff")
        .replace(b"part", b"\xff\xfe\xfd\xfc")
    )
    assert_refused(Defect.MALFORMED, (sealed(body), expected, layout), match="the content is not readable")


def test_the_checksum_is_compared_whole():
    data, expected, layout = NUMBERS
    content = pb.Payload.FromString(data).content
    digest = hashlib.sha256(content).digest()
    for checksum in (b"", digest[:16], digest + b"\0", digest[::-1], hashlib.sha256(content + b"\0").digest()):
        assert_refused(
            Defect.CHECKSUM, (pb.Payload(checksum=checksum, content=content).SerializeToString(), expected, layout)
        )


def test_the_bytes_are_checked_in_order_before_anything_is_decoded():
    def change(content):
        content.header.version = 9
        content.header.round = 9
        content.parts[0].data = b"\xff" * 20

    assert_refused(Defect.VERSION, NUMBERS, change)


def test_header_is_what_pack_wrote():
    assert wire.inspect(NUMBERS[0])[0] == header(5)
