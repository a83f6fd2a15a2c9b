"""Rice codes of sparse masks: exact, near the entropy, and closed to hostile bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import popcount, rice


def sparse(numel: int, density: float, seed: int = 0) -> np.ndarray:
    return np.packbits(np.random.default_rng(seed).random(numel) < density, bitorder="little")


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 63, 64, 65, 20_001])
def test_round_trip(numel: int, density: float) -> None:
    mask = sparse(numel, density)
    parameter, data = rice.encode(mask, numel)
    count = popcount(mask)
    assert np.array_equal(rice.decode(data, parameter, numel, count), mask)
    assert data.size == (rice.size_bits(mask, parameter) + 7) // 8
    assert parameter == rice.parameter_for(count, numel)


@pytest.mark.parametrize("at", [0, 1, 63, 64, 99_999])
def test_a_single_bit_far_away(at: int) -> None:
    mask = np.zeros(12_500, np.uint8)
    mask[at >> 3] = 1 << (at & 7)
    parameter, data = rice.encode(mask, 100_000)
    assert np.array_equal(rice.decode(data, parameter, 100_000, 1), mask)
    assert data.size <= 4


def test_long_runs_of_zeros_cross_words() -> None:
    mask = np.zeros(5000, np.uint8)
    mask[:500] = 255
    mask[-1] = 128
    parameter, data = rice.encode(mask, 40_000)
    assert parameter <= 3
    assert np.array_equal(rice.decode(data, parameter, 40_000, 4001), mask)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.3])
def test_parameter_is_the_best(density: float) -> None:
    numel = 400_000
    mask = sparse(numel, density)
    chosen = rice.parameter_for(popcount(mask), numel)
    best = min(rice.size_bits(mask, p) for p in range(33))
    assert rice.size_bits(mask, chosen) <= 1.002 * best


def test_size_at_one_percent_is_near_the_floor() -> None:
    numel, density = 1 << 20, 0.01
    mask = sparse(numel, density)
    p = popcount(mask) / numel
    floor = numel * (p - p * np.log2(p) - (1 - p) * np.log2(1 - p))
    _, data = rice.encode(mask, numel)
    assert 8 * data.size + popcount(mask) <= 1.006 * floor


def test_truncation_at_every_byte() -> None:
    mask = sparse(3000, 0.02)
    parameter, data = rice.encode(mask, 3000)
    for size in range(data.size):
        with pytest.raises(PayloadError) as error:
            rice.decode(data[:size], parameter, 3000, popcount(mask))
        assert error.value.defect in (Defect.STREAM, Defect.COUNT)


def test_every_flipped_bit_is_another_mask_or_refused() -> None:
    mask = sparse(1000, 0.05)
    parameter, data = rice.encode(mask, 1000)
    for bit in range(8 * data.size):
        flipped = data.copy()
        flipped[bit >> 3] ^= 1 << (bit & 7)
        try:
            other = rice.decode(flipped, parameter, 1000, popcount(mask))
        except PayloadError:
            continue
        assert popcount(other) == popcount(mask)
        assert np.array_equal(rice.encode(other, 1000)[1], flipped)


@given(st.binary(max_size=60), st.integers(-1, 34), st.integers(0, 3000), st.integers(-1, 200))
def test_random_bytes_give_the_count_or_are_refused(data: bytes, parameter: int, numel: int, count: int) -> None:
    stream = np.frombuffer(data, np.uint8)
    try:
        mask = rice.decode(stream, parameter, numel, count)
    except PayloadError as error:
        assert error.defect in (Defect.STREAM, Defect.PADDING, Defect.COUNT, Defect.TABLE)
    else:
        assert popcount(mask) == count
        assert not numel & 7 or mask[-1] >> (numel & 7) == 0
        assert (rice.size_bits(mask, parameter) + 7) // 8 == stream.size


@pytest.mark.parametrize(
    ("data", "parameter", "numel", "count", "defect"),
    [
        ([0], 0, 100, 1, Defect.STREAM),
        ([0] * 100, 0, 100, 1, Defect.STREAM),
        ([0] * 40 + [1], 32, 100, 1, Defect.STREAM),
        ([0, 128], 0, 15, 1, Defect.STREAM),
        ([1, 0], 0, 100, 1, Defect.COUNT),
        ([3], 0, 100, 1, Defect.PADDING),
        ([1], 0, 100, 2, Defect.STREAM),
        ([1], 0, 100, 9, Defect.COUNT),
        ([1], 0, 100, -1, Defect.COUNT),
        ([1], 33, 100, 1, Defect.TABLE),
    ],
)
def test_each_rule(data: list[int], parameter: int, numel: int, count: int, defect: Defect) -> None:
    with pytest.raises(PayloadError) as error:
        rice.decode(np.array(data, np.uint8), parameter, numel, count)
    assert error.value.defect == defect


@pytest.mark.parametrize(("mask", "numel"), [([1], 9), ([1, 4], 10), ([1, 0, 0], 10)])
def test_encode_refuses_a_mask_of_another_size(mask: list[int], numel: int) -> None:
    with pytest.raises(ValueError, match="mask: expected"):
        rice.encode(np.array(mask, np.uint8), numel)


def test_size_bits_refuses_a_parameter() -> None:
    with pytest.raises(ValueError, match="parameter: expected 0 to 32"):
        rice.size_bits(np.zeros(1, np.uint8), 33)
