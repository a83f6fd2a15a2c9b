"""The arithmetic coder: exact, within two bytes of what chances cost, and one code for one sequence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.kernels import arithmetic

Bits = list[tuple[int, int]]
BITS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 65535)), max_size=300)


def coded(bits: Bits) -> np.ndarray:
    coder = arithmetic.writer(3 * len(bits) + 3)
    for bit, chance in bits:
        assert arithmetic.code(bit, chance, coder) == bit
    return coder.stream[: arithmetic.finish(coder)].copy()


def read(stream: np.ndarray, chances: list[int]) -> tuple[list[int], bool]:
    coder = arithmetic.reader(stream)
    return [arithmetic.code(0, chance, coder) for chance in chances], arithmetic.ends(coder)


class Exact:
    """The same intervals over whole numbers of any size, where nothing carries."""

    def __init__(self) -> None:
        self.low, self.width, self.shifts = 0, 1 << 32, 0

    def cut(self, chance: int) -> int:
        return (self.width >> 16) * chance

    def code(self, bit: int, chance: int) -> None:
        cut = self.cut(chance)
        self.low, self.width = (self.low, cut) if bit else (self.low + cut, self.width - cut)
        while self.width < 1 << 24:
            self.low, self.width, self.shifts = self.low << 8, self.width << 8, self.shifts + 1

    def finish(self) -> bytes:
        return ((self.low + (1 << 16) - 1) >> 16).to_bytes(self.shifts + 2, "big")


@settings(deadline=None)
@given(BITS)
def test_the_bytes_are_those_of_exact_arithmetic(bits: Bits) -> None:
    exact = Exact()
    for bit, chance in bits:
        exact.code(bit, chance)
    stream = coded(bits)
    assert stream.tobytes() == exact.finish()
    assert read(stream, [chance for _, chance in bits]) == ([bit for bit, _ in bits], True)
    cost = -sum(np.log2(chance / 65536 if bit else 1 - chance / 65536) for bit, chance in bits)
    assert 8 * stream.size <= cost + 0.006 * len(bits) + 16


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("chance", [3000, 21845, 40000, 62500])
def test_a_carry_runs_through_many_bytes(above: bool, chance: int) -> None:
    """Bits that keep one half inside the interval put off the decision whether the code is 0.0111... or 0.1000..."""
    exact, bits = Exact(), []
    for _ in range(3000):
        half = 1 << (31 + 8 * exact.shifts)
        bit = int(half < exact.low + exact.cut(chance))
        bits.append((bit, chance))
        exact.code(bit, chance)
    while exact.low < half < exact.low + exact.width:
        bit = int(not above)
        bits.append((bit, 32768))
        exact.code(bit, 32768)
        half = 1 << (31 + 8 * exact.shifts)
    stream = coded(bits)
    assert stream.tobytes() == exact.finish()
    assert stream[0] == (128 if above else 127) and np.all(stream[1:20] == (0 if above else 255))
    assert read(stream, [chance for _, chance in bits]) == ([bit for bit, _ in bits], True)


@settings(deadline=None)
@given(st.binary(max_size=12), st.lists(st.integers(1, 65535), max_size=60))
def test_any_bytes_that_end_are_the_code_of_what_they_say(data: bytes, chances: list[int]) -> None:
    stream = np.frombuffer(data, np.uint8).copy()
    bits, ended = read(stream, chances)
    again = coded(list(zip(bits, chances, strict=True)))
    assert ended == np.array_equal(again, stream)


@settings(deadline=None)
@given(BITS, st.binary(min_size=1, max_size=3))
def test_no_code_begins_with_another(bits: Bits, more: bytes) -> None:
    stream, chances = coded(bits), [chance for _, chance in bits]
    for size in range(stream.size):
        assert not read(stream[:size], chances)[1]
    longer = np.append(stream, np.frombuffer(more, np.uint8))
    assert read(longer, chances) == ([bit for bit, _ in bits], False)


def test_nothing_takes_two_bytes_and_no_byte_is_nothing() -> None:
    assert coded([]).tolist() == [0, 0]
    assert read(np.zeros(2, np.uint8), []) == ([], True)
    assert not read(np.zeros(0, np.uint8), [])[1]


def test_a_reader_that_goes_on_has_overrun() -> None:
    coder = arithmetic.reader(np.array([200, 17], np.uint8))
    for _ in range(7):
        arithmetic.code(0, 32768, coder)
    assert not arithmetic.overran(coder)
    for _ in range(40):
        arithmetic.code(0, 32768, coder)
    assert arithmetic.overran(coder)
    assert not arithmetic.overran(arithmetic.writer(2))
