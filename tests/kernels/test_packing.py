"""Small numbers in few bits each."""

import numpy as np
import pytest

from fedpeft.kernels import packing
from fedpeft.kernels.packing import pack_symbols, unpack_symbols

WIDTHS = range(1, 9)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 63, 64, 1000, 4099])
def test_bits_lie_one_number_after_the_other(n):
    for width in WIDTHS:
        values = np.random.default_rng(n).integers(0, 1 << width, n).astype(np.uint8)
        packed = pack_symbols(values, width)
        bits = np.unpackbits(values[:, None], axis=1, bitorder="little")[:, :width]
        assert np.array_equal(packed, np.packbits(bits.reshape(-1), bitorder="little"))
        assert np.array_equal(unpack_symbols(packed, width, n), values)


def test_more_than_a_block_that_may_not_be_written_to():
    values = np.random.default_rng(0).integers(0, 8, packing.BLOCK + 13).astype(np.uint8)
    packed = np.frombuffer(pack_symbols(values, 3).tobytes(), np.uint8)
    assert np.array_equal(unpack_symbols(packed, 3, values.size), values)


def test_any_bytes_are_some_numbers():
    for width in WIDTHS:
        data = np.random.default_rng(width).integers(0, 256, 24 * width + width).astype(np.uint8)
        assert np.array_equal(pack_symbols(unpack_symbols(data, width, 200), width), data)


@pytest.mark.parametrize("size", [0, 5, 7])
def test_another_number_of_bytes_is_refused(size):
    with pytest.raises(ValueError, match="expected 6 bytes for 15 numbers of 3 bits, got"):
        unpack_symbols(np.zeros(size, np.uint8), 3, 15)


@pytest.mark.parametrize("width", [0, 9])
def test_widths_are_those_of_bytes(width):
    with pytest.raises(ValueError, match="expected 1 to 8 bits"):
        pack_symbols(np.zeros(3, np.uint8), width)
