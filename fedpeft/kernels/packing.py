"""Small numbers side by side, each in as many bits as the largest takes: eight of them fill whole bytes."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

EIGHT = 8
BLOCK = 1 << 20


@kernel
def _pack(values: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None:
    for k in range(values.size // EIGHT):
        word = np.uint64(0)
        for j in range(np.uint64(EIGHT)):
            word |= np.uint64(values[np.uint64(EIGHT * k) + j]) << (j * np.uint64(width))
        for j in range(np.uint64(width)):
            out[np.uint64(width * k) + j] = np.uint8(word >> (np.uint64(EIGHT) * j))
    word, first = np.uint64(0), values.size & ~(EIGHT - 1)
    for i in range(first, values.size):
        word |= np.uint64(values[i]) << np.uint64((i - first) * width)
    for i in range(width * (first // EIGHT), out.size):
        out[i] = np.uint8(word)
        word >>= np.uint64(EIGHT)


@kernel
def _unpack(data: NDArray[np.uint8], width: int, values: NDArray[np.uint8]) -> None:
    mask = np.uint64((1 << width) - 1)
    for k in range(values.size // EIGHT):
        word = np.uint64(0)
        for j in range(np.uint64(width)):
            word |= np.uint64(data[np.uint64(width * k) + j]) << (np.uint64(EIGHT) * j)
        for j in range(np.uint64(EIGHT)):
            values[np.uint64(EIGHT * k) + j] = np.uint8((word >> (j * np.uint64(width))) & mask)
    word, first = np.uint64(0), values.size & ~(EIGHT - 1)
    begin = width * (first // EIGHT)
    for i in range(begin, data.size):
        word |= np.uint64(data[i]) << np.uint64(EIGHT * (i - begin))
    for i in range(first, values.size):
        values[i] = np.uint8(word & mask)
        word >>= np.uint64(width)


def pack_symbols(values: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Bits of numbers, one number after the other, the lowest bit first.

    >>> pack_symbols(np.array([1, 0, 3, 2], np.uint8), 2).tolist()
    [177]

    Args:
        values: uint8[n], below 2^width.
        width: bits of each, 1 to 8.

    Returns:
        uint8[ceil(n width / 8)]; the bits behind the last number are zero.
    """
    out = np.empty(_size(values.size, width), np.uint8)
    _pack(vector(values, np.uint8, "values"), width, out)
    return out


def unpack_symbols(data: NDArray[np.uint8], width: int, n: int) -> NDArray[np.uint8]:
    """Undo `pack_symbols`: uint8[n].

    Raises:
        ValueError: there are more or fewer bytes than n numbers take.
    """
    values = np.empty(n, np.uint8)
    if data.size != _size(n, width):
        raise ValueError(f"data: expected {_size(n, width)} bytes for {n} numbers of {width} bits, got {data.size}")
    for begin in range(0, n, BLOCK):  # what may not be written to is copied
        part = data[begin * width // EIGHT : -(-(begin + BLOCK) * width // EIGHT)]
        _unpack(vector(part, np.uint8, "data"), width, values[begin : begin + BLOCK])
    return values


def _size(n: int, width: int) -> int:
    if not 1 <= width <= EIGHT:
        raise ValueError(f"width: expected 1 to 8 bits, got {width}")
    return -(-n * width // EIGHT)
