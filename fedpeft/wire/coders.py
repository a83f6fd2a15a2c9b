"""Parts to bytes: one set of lossless coders for all codecs; the smallest that fits is taken."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft._proto import update_pb2 as pb
from fedpeft.codecs import Field, Numbers, Part, Plane, Symbols
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import packing, planes, rans, rice, tables
from fedpeft.wire.lent import LentNumbers, first_not_finite

_LEAST_TABLE = 128  # bytes of 256 entries of four bits and more


@dataclass(frozen=True)
class Coded:
    """A part as bytes: the coder, its output, and what the coder needs to read it back."""

    coder: pb.Coder
    data: bytes | memoryview
    table: bytes = b""
    parameter: int = 0
    ones: int = 0


def encode(part: Part) -> Coded:
    """The bytes of a part, by the coder that makes fewest of them (the first listed wins a tie)."""
    match part:
        case Numbers(values):
            return Coded(pb.CODER_RAW, _bytes(values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)))
        case Plane(bits, numel):
            return _encode_plane(bits, numel)
        case Symbols(values, levels):
            return _encode_symbols(values, levels)


def decode(coded: Coded, field: Field, numel: int) -> Part:
    """The part that `field` expects, from hostile bytes; `numel` is already known to be admissible.

    Numbers are lent: they are copied where a codec asks for `values`. All other arrays are the part's own.

    Raises:
        PayloadError: the bytes are no such part.
    """
    if coded.coder != pb.CODER_RICE and (coded.parameter or coded.ones):
        raise PayloadError(Defect.CODER, "a Rice parameter came with another coder")
    if coded.coder not in (pb.CODER_RANS, pb.CODER_RANS_CLASSES) and coded.table:
        raise PayloadError(Defect.CODER, "a frequency table came with a coder that has none")
    match field.kind:
        case "numbers":
            return _decode_numbers(coded, field, numel)
        case "plane":
            return _decode_plane(coded, numel)
        case "symbols":
            return _decode_symbols(coded, field.levels, numel)


def largest(field: Field) -> int:
    """The most bytes that `encode` makes of such a part: no coder is taken that is longer than plain bits."""
    if field.kind == "numbers":
        return field.numel * np.dtype(field.dtype).itemsize
    return -(-field.numel * _width(field.levels if field.kind == "symbols" else 2) // 8)


def _width(levels: int) -> int:
    return max(1, (levels - 1).bit_length())


def _rans_size(counts: NDArray[np.int64], frequencies: NDArray[np.uint32], table: bytes) -> float:
    used = counts > 0
    bits = float(counts[used] @ (rans.PRECISION - np.log2(frequencies[used])))
    return bits / 8 + rans.HEADER_BYTES + len(table)


def _least_rans_size(counts: NDArray[np.int64]) -> float:
    """What no rANS stream with a table of 256 entries is shorter than, whatever is in the table."""
    used = counts[counts > 0]
    return float(used @ -np.log2(used / used.sum())) / 8 + rans.HEADER_BYTES + _LEAST_TABLE


def _encode_plane(bits: NDArray[np.uint8], numel: int) -> Coded:
    counts = rans.histogram(bits)
    least = _least_rans_size(counts)
    choices: list[tuple[float, pb.Coder]] = [(float(len(bits)), pb.CODER_BITS)]
    coded: dict[pb.Coder, tuple[NDArray[np.uint32], bytes]] = {}

    def offer(coder: pb.Coder, frequencies: NDArray[np.uint32], table: bytes) -> None:
        coded[coder] = frequencies, table
        choices.append((_rans_size(counts, frequencies, table), coder))

    if least - _LEAST_TABLE < len(bits):
        masses = tables.class_masses(np.bincount(planes.ONES, counts, 9).astype(np.int64))
        offer(pb.CODER_RANS_CLASSES, tables.class_table(masses), masses.astype("<u2").tobytes())
        if least < min(choices)[0]:
            full = tables.normalise(counts)
            offer(pb.CODER_RANS, full, tables.pack_table(full, 256).tobytes())
    ones = int(counts @ planes.ONES)
    # Above this density a byte-wise rANS is never longer, and measuring Rice costs as much as coding with it.
    if 0 < ones < numel // 16:
        parameter = rice.parameter_for(ones, numel)
        choices.append((rice.size_bits(bits, parameter) / 8, pb.CODER_RICE))
    match min(choices, key=lambda choice: choice[0])[1]:
        case pb.CODER_BITS:
            return Coded(pb.CODER_BITS, _bytes(bits))
        case pb.CODER_RICE:
            parameter, data = rice.encode(bits, numel)
            return Coded(pb.CODER_RICE, _bytes(data), parameter=parameter, ones=ones)
        case coder:
            frequencies, table = coded[coder]
            return Coded(coder, _bytes(rans.encode(bits, frequencies)), table)


def _decode_plane(coded: Coded, numel: int) -> Plane:
    size = -(-numel // 8)
    data = np.frombuffer(coded.data, dtype=np.uint8)
    match coded.coder:
        case pb.CODER_BITS:
            if len(data) != size:
                raise PayloadError(Defect.PART_SIZE, f"expected {size} bytes for {numel} bits, got {len(data)}")
            bits = data.copy()
        case pb.CODER_RANS:
            bits = rans.decode(data, _table(coded, 256), size)
        case pb.CODER_RANS_CLASSES:
            if len(coded.table) != 18:
                raise PayloadError(Defect.TABLE, f"expected 9 frequencies in 18 bytes, got {len(coded.table)} bytes")
            masses = np.frombuffer(coded.table, dtype="<u2").astype(np.uint16)
            bits = rans.decode(data, tables.class_table(masses), size)
        case pb.CODER_RICE:
            if coded.ones > numel:
                raise PayloadError(Defect.COUNT, f"{coded.ones} set bits in a plane of {numel}")
            bits = rice.decode(data, coded.parameter, numel, coded.ones)
        case _:
            raise PayloadError(Defect.CODER, f"coder {coded.coder} does not make planes")
    if numel % 8 and int(bits[-1]) >> numel % 8:
        raise PayloadError(Defect.PADDING, f"bits past the last of {numel} are set")
    return Plane(bits, numel)


def _encode_symbols(values: NDArray[np.uint8], levels: int) -> Coded:
    plain = -(-len(values) * _width(levels) // 8)
    if len(values):
        counts = rans.histogram(values)
        frequencies = tables.normalise(counts)
        table = tables.pack_table(frequencies, levels).tobytes()
        if _rans_size(counts, frequencies, table) < plain:
            return Coded(pb.CODER_RANS, _bytes(rans.encode(values, frequencies)), table)
    return Coded(pb.CODER_BITS, _bytes(packing.pack_symbols(values, _width(levels))))


def _decode_symbols(coded: Coded, levels: int, numel: int) -> Symbols:
    data = np.frombuffer(coded.data, dtype=np.uint8)
    match coded.coder:
        case pb.CODER_RANS:
            return Symbols(rans.decode(data, _table(coded, levels), numel), levels)
        case pb.CODER_BITS:
            width = _width(levels)
            if len(data) != -(-numel * width // 8):
                raise PayloadError(Defect.PART_SIZE, f"expected {numel} symbols of {width} bits, got {len(data)} bytes")
            if numel * width % 8 and int(data[-1]) >> numel * width % 8:
                raise PayloadError(Defect.PADDING, f"bits past the last of {numel} symbols are set")
            values = packing.unpack_symbols(data, width, numel)
            if numel and int(values.max()) >= levels:
                raise PayloadError(Defect.SYMBOL, f"symbol {int(values.max())} in an alphabet of {levels}")
            return Symbols(values, levels)
    raise PayloadError(Defect.CODER, f"coder {coded.coder} does not make symbols")


def _table(coded: Coded, levels: int) -> NDArray[np.uint32]:
    return tables.unpack_table(np.frombuffer(coded.table, dtype=np.uint8), levels)


def _bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array where they lie."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _decode_numbers(coded: Coded, field: Field, numel: int) -> Numbers:
    if coded.coder != pb.CODER_RAW:
        raise PayloadError(Defect.CODER, f"coder {coded.coder} does not make numbers")
    dtype = np.dtype(field.dtype).newbyteorder("<")
    if len(coded.data) != numel * dtype.itemsize:
        raise PayloadError(
            Defect.PART_SIZE,
            f"expected {numel} numbers of {dtype.itemsize} bytes, got {len(coded.data)} bytes",
        )
    values = np.frombuffer(coded.data, dtype=dtype)
    if dtype.kind == "f" and (i := first_not_finite(values)) is not None:
        raise PayloadError(Defect.NON_FINITE, f"number {i} is {values[i]}")
    if field.permutation and not np.array_equal(np.sort(values), np.arange(numel)):
        raise PayloadError(Defect.SYMBOL, f"expected the numbers 0 to {numel - 1} in some order")
    return LentNumbers(values)
