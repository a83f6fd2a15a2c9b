"""Arithmetic coding of bits whose chances are known at both ends: a range coder of 32 bits, in integers throughout.

Witten, Neal and Cleary, "Arithmetic coding for data compression", Communications of the ACM 30(6), 1987, with the
bytewise renormalisation of Martin, "Range encoding", 1979. A code ends in two bytes that name the first multiple of
2^16 in the last interval; whatever stands behind them, the code's number lies in that interval. So every sequence of
bits has one code, and no code begins with another one: `ends` refuses one that is cut short, goes on, or was altered
into anything but the code of other bits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import inlined, kernel

CHANCE_BITS = 16
WHOLE = 1 << 32
NARROW = 1 << 24
LAST = 1 << 16
LOW = WHOLE - 1
LOW_END, WIDTH, POSITION = 0, 1, 2


class Coder(NamedTuple):
    """A code that is written or read.

    Args:
        stream: its bytes, or room for them.
        state: the low end of the interval (when reading, the code's distance from it), the interval's width, and the
            index of the next byte.
        reading: whether it is read.
    """

    stream: NDArray[np.uint8]
    state: NDArray[np.int64]
    reading: bool


def writer(most_bytes: int) -> Coder:
    """A coder to write with."""
    return Coder(np.empty(most_bytes, np.uint8), np.array([0, WHOLE, 0]), False)


def reader(stream: NDArray[np.uint8]) -> Coder:
    """A coder to read with; behind the stream's end are zeros."""
    head = bytes(stream[:4]).ljust(4, b"\0")
    return Coder(stream, np.array([int.from_bytes(head, "big"), WHOLE, 4]), True)


@inlined
def _carry(stream: NDArray[np.uint8], position: int) -> None:
    """Add one to the number that the bytes before `position` are; as a code is less than 1, that stays within them."""
    position -= 1
    while stream[position] == 255:
        stream[position] = 0
        position -= 1
    stream[position] += np.uint8(1)


@inlined
def _write(bit: int, chance: int, coder: Coder) -> None:
    state, stream = coder.state, coder.stream
    low, width, position = state[LOW_END], state[WIDTH], state[POSITION]
    cut = (width >> CHANCE_BITS) * chance
    if bit:
        width = cut
    else:
        low += cut
        width -= cut
    if low > LOW:
        _carry(stream, position)
        low &= LOW
    while width < NARROW:
        stream[position] = np.uint8(low >> 24)
        position += 1
        low = (low << 8) & LOW
        width <<= 8
    state[LOW_END], state[WIDTH], state[POSITION] = low, width, position


@inlined
def _read(chance: int, coder: Coder) -> int:
    state, stream = coder.state, coder.stream
    code, width, position = state[LOW_END], state[WIDTH], state[POSITION]
    cut = (width >> CHANCE_BITS) * chance
    bit = 1 if code < cut else 0
    if bit:
        width = cut
    else:
        code -= cut
        width -= cut
    while width < NARROW:
        code = code << 8 | (np.int64(stream[position]) if position < stream.size else 0)
        position += 1
        width <<= 8
    state[LOW_END], state[WIDTH], state[POSITION] = code, width, position
    return bit


@inlined
def code(bit: int, chance: int, coder: Coder) -> int:
    """Write a bit that is 1 with `chance` / 2^16, in (0, 1), or read one, whatever `bit` is; give the bit."""
    if coder.reading:
        return _read(chance, coder)  # type: ignore[no-any-return]
    _write(bit, chance, coder)
    return bit


@inlined
def overran(coder: Coder) -> bool:
    """Whether more was read than `finish` writes."""
    return coder.reading and coder.state[POSITION] > coder.stream.size + 2  # type: ignore[no-any-return]


@kernel
def finish(coder: Coder) -> int:
    """Write the last bytes and give how many there are."""
    low, position = coder.state[LOW_END] + LAST - 1, coder.state[POSITION]
    if low > LOW:
        _carry(coder.stream, position)
    coder.stream[position] = np.uint8((low & LOW) >> 24)
    coder.stream[position + 1] = np.uint8((low >> 16) & 255)
    return position + 2  # type: ignore[no-any-return]


def ends(coder: Coder) -> bool:
    """Whether `finish` would end the code here, at this size, with these last bytes."""
    return bool(coder.state[POSITION] == coder.stream.size + 2 and coder.state[LOW_END] < LAST)
