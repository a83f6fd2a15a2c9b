"""The entropy coder and its tables: exact, near the entropy, and closed to hostile bytes."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import rans, tables

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 1000]


def mask_bytes(n: int, density: float, seed: int = 0) -> np.ndarray:
    return np.packbits(np.random.default_rng(seed).random(8 * n) < density, bitorder="little")


def entropy_bits(density: float) -> float:
    return float(-density * np.log2(density) - (1 - density) * np.log2(1 - density))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_round_trip(n: int, density: float) -> None:
    symbols = mask_bytes(n, density)
    freq = tables.normalise(rans.histogram(symbols))
    classes = tables.class_table(tables.class_masses(tables.popcount_counts(symbols)))
    for table in (freq, classes):
        data = rans.encode(symbols, table)
        assert np.array_equal(rans.decode(data, table, n), symbols)
        assert np.array_equal(rans.encode(symbols, table), data)
        assert abs(rans.size_bytes(rans.histogram(symbols), table) - data.size) <= 16


@given(st.lists(st.integers(0, 255), max_size=200), st.lists(st.integers(0, 2000), min_size=256, max_size=256))
def test_round_trip_under_any_table(values: list[int], extra: list[int]) -> None:
    symbols = np.array(values, np.uint8)
    freq = tables.normalise(rans.histogram(symbols) + np.array(extra))
    assert np.array_equal(rans.decode(rans.encode(symbols, freq), freq, symbols.size), symbols)


@pytest.mark.parametrize("f", [1, 2, 3, 5, 127, 4095, 8191, 8192, 8193, 16381, 16382, 16383])
def test_division_is_exact_for_extreme_frequencies(f: int) -> None:
    freq = np.zeros(256, np.uint32)
    freq[3], freq[250] = f, rans.TOTAL - f
    symbols = np.random.default_rng(f).choice(np.array([3, 250], np.uint8), 4000)
    assert np.array_equal(rans.decode(rans.encode(symbols, freq), freq, symbols.size), symbols)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
def test_size_is_within_half_a_percent_of_the_floor(density: float) -> None:
    n = 1 << 17
    symbols = mask_bytes(n, density)
    table = tables.class_table(tables.class_masses(tables.popcount_counts(symbols)))
    signs_bits = 8 * n * density
    floor = 8 * n * (entropy_bits(density) + density)
    assert 8 * (rans.encode(symbols, table).size + 18) + signs_bits <= 1.006 * floor


def test_one_symbol_costs_only_the_states() -> None:
    symbols = np.full(10_000, 9, np.uint8)
    assert rans.encode(symbols, tables.normalise(rans.histogram(symbols))).size == rans.HEADER_BYTES


def test_encode_refuses_a_symbol_without_frequency() -> None:
    freq = tables.normalise(rans.histogram(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match="has frequency 0"):
        rans.encode(np.array([0, 1], np.uint8), freq)
    with pytest.raises(ValueError, match="sum to 16384"):
        rans.encode(np.array([0, 1], np.uint8), freq + freq)


def test_truncation_at_every_byte() -> None:
    symbols = mask_bytes(300, 0.2)
    freq = tables.normalise(rans.histogram(symbols))
    data = rans.encode(symbols, freq)
    for size in range(data.size):
        with pytest.raises(PayloadError, match=Defect.STREAM):
            rans.decode(data[:size], freq, symbols.size)
    with pytest.raises(PayloadError, match=Defect.STREAM):
        rans.decode(np.append(data, np.zeros(2, np.uint8)), freq, symbols.size)


def test_every_flipped_bit_is_another_message_or_refused() -> None:
    symbols = mask_bytes(100, 0.2)
    freq = tables.normalise(rans.histogram(symbols))
    data = rans.encode(symbols, freq)
    for bit in range(8 * data.size):
        flipped = data.copy()
        flipped[bit >> 3] ^= 1 << (bit & 7)
        try:
            other = rans.decode(flipped, freq, symbols.size)
        except PayloadError as error:
            assert error.defect == Defect.STREAM
        else:
            assert np.array_equal(rans.encode(other, freq), flipped)


@given(st.binary(max_size=120), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_random_bytes_are_canonical_or_refused(data: bytes, n: int, seed: int) -> None:
    freq = tables.normalise(rans.histogram(mask_bytes(200, 0.3, seed)))
    stream = np.frombuffer(data, np.uint8)
    try:
        symbols = rans.decode(stream, freq, n)
    except PayloadError as error:
        assert error.defect == Defect.STREAM
    else:
        assert np.array_equal(rans.encode(symbols, freq), stream)


@pytest.mark.parametrize("freq", [np.zeros(256, np.uint32), np.full(256, 65, np.uint32), np.full(255, 64, np.uint32)])
def test_decode_refuses_a_table_that_does_not_sum(freq: np.ndarray) -> None:
    with pytest.raises(PayloadError, match=Defect.TABLE):
        rans.decode(np.zeros(40, np.uint8), freq, 3)


def test_table_whose_sum_wraps_is_refused() -> None:
    freq = np.zeros(256, np.uint32)
    freq[:2] = 2**32 - 1, rans.TOTAL + 1
    with pytest.raises(PayloadError, match=Defect.TABLE):
        rans.decode(np.zeros(40, np.uint8), freq, 3)


@given(st.lists(st.integers(0, 2**39) | st.integers(0, 3), min_size=256, max_size=256))
def test_normalise_sums_and_keeps_what_occurs(values: list[int]) -> None:
    counts = np.array(values, np.int64)
    freq = tables.normalise(counts)
    assert rans.is_table(freq)
    if counts.any():
        assert np.array_equal(freq > 0, counts > 0)


def test_normalise_is_no_worse_than_any_move_of_one_unit() -> None:
    counts = rans.histogram(mask_bytes(5000, 0.1))
    freq = tables.normalise(counts).astype(np.float64)
    used = np.flatnonzero(counts)
    gain = counts[used] * np.log2((freq[used] + 1) / freq[used])
    loss = np.where(freq[used] > 1, counts[used] * np.log2(freq[used] / np.maximum(freq[used] - 1, 0.5)), np.inf)
    assert gain.max() <= loss.min() * 1.001


def test_nothing_counted_has_a_table() -> None:
    assert tables.normalise(np.zeros(256, np.int64))[0] == rans.TOTAL
    assert tables.class_masses(np.zeros(9, np.int64))[0] == rans.TOTAL


@given(st.lists(st.integers(0, 2**39) | st.integers(0, 3), min_size=9, max_size=9))
def test_class_table_of_any_counts(values: list[int]) -> None:
    masses = tables.class_masses(np.array(values, np.int64))
    freq = tables.class_table(masses)
    assert rans.is_table(freq)
    for c in range(9):
        shared = freq[[b for b in range(256) if b.bit_count() == c]]
        assert shared.sum() == masses[c]
        assert np.ptp(shared) <= 1
        assert values[c] == 0 or shared.min() > 0


@given(st.lists(st.integers(0, 2**16 - 1) | st.sampled_from([0, comb(8, 4), 8192]), max_size=10))
def test_class_table_refuses_hostile_masses(values: list[int]) -> None:
    masses = np.array(values, np.uint16)
    try:
        freq = tables.class_table(masses)
    except PayloadError as error:
        assert error.defect == Defect.TABLE
    else:
        assert rans.is_table(freq)


@given(st.integers(1, 256), st.data())
def test_table_round_trip(levels: int, data: st.DataObject) -> None:
    counts = np.zeros(256, np.int64)
    counts[:levels] = data.draw(st.lists(st.integers(0, 9999) | st.just(0), min_size=levels, max_size=levels))
    freq = tables.normalise(counts)
    packed = tables.pack_table(freq, levels)
    assert np.array_equal(tables.unpack_table(packed, levels), freq)
    for size in range(packed.size):
        with pytest.raises(PayloadError):
            tables.unpack_table(packed[:size], levels)
    with pytest.raises(PayloadError, match=Defect.PADDING):
        tables.unpack_table(np.append(packed, np.uint8(0)), levels)


@given(st.binary(max_size=700), st.integers(1, 256))
def test_random_tables_are_canonical_or_refused(data: bytes, levels: int) -> None:
    packed = np.frombuffer(data, np.uint8)
    try:
        freq = tables.unpack_table(packed, levels)
    except PayloadError as error:
        assert error.defect in (Defect.TABLE, Defect.PADDING)
    else:
        assert np.array_equal(tables.pack_table(freq, levels), packed)


def test_every_flipped_bit_of_a_table_is_seen() -> None:
    freq = tables.normalise(rans.histogram(mask_bytes(5000, 0.1)))
    packed = tables.pack_table(freq, 256)
    for bit in range(8 * packed.size):
        flipped = packed.copy()
        flipped[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(PayloadError):
            tables.unpack_table(flipped, 256)


def test_pack_table_refuses_symbols_above_levels() -> None:
    freq = np.full(256, 64, np.uint32)
    with pytest.raises(ValueError, match="frequencies of 255 levels"):
        tables.pack_table(freq, 255)
