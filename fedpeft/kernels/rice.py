"""Rice coding of the gaps between set bits: for masks so sparse that a byte alphabet wastes its smallest frequency."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels.jit import kernel, trailing_zeros, vector, words
from fedpeft.kernels.planes import popcount

MAX_PARAMETER = 32
ONE, WORD_BITS = np.uint64(1), np.uint64(64)
TRUNCATED, BEYOND, UNREAD, PADDED = -1, -2, -3, -4


@kernel
def _window(stream: NDArray[np.uint64], position: np.uint64) -> np.uint64:
    """Read the 64 bits from bit `position`."""
    word, shift = position >> np.uint64(6), position & np.uint64(63)
    return np.uint64((stream[word] >> shift) | ((stream[word + ONE] << ONE) << (np.uint64(63) - shift)))


@kernel
def _encode(mask: NDArray[np.uint64], parameter: np.uint64, out: NDArray[np.uint64]) -> int:
    """Write each gap as (gap >> parameter) zeros, a one and its low bits; give the number of bits written."""
    low = (ONE << parameter) - ONE
    position = np.uint64(0)
    expected = np.uint64(0)
    for i in range(mask.size):
        word = mask[i]
        while word != 0:
            index = (np.uint64(i) << np.uint64(6)) + trailing_zeros(word)
            word &= word - ONE
            gap = index - expected
            expected = index + ONE
            position += gap >> parameter
            code = ((gap & low) << ONE) | ONE
            at, shift = position >> np.uint64(6), position & np.uint64(63)
            out[at] |= code << shift
            out[at + ONE] |= (code >> ONE) >> (np.uint64(63) - shift)
            position += parameter + ONE
    return position  # type: ignore[return-value]


@kernel
def _size_bits(mask: NDArray[np.uint64], parameter: np.uint64) -> int:
    size = np.uint64(0)
    expected = np.uint64(0)
    for i in range(mask.size):
        word = mask[i]
        while word != 0:
            index = (np.uint64(i) << np.uint64(6)) + trailing_zeros(word)
            word &= word - ONE
            size += ((index - expected) >> parameter) + parameter + ONE
            expected = index + ONE
    return size  # type: ignore[return-value]


@kernel
def _decode(
    stream: NDArray[np.uint64],
    bits: np.uint64,
    parameter: np.uint64,
    numel: np.uint64,
    count: int,
    mask: NDArray[np.uint8],
) -> int:
    """Set `count` bits of `mask`; 0, or the rule that the stream breaks.

    `position` never passes `bits` and `stream` has 16 bytes of zeros after them, so every window lies inside.
    """
    low = (ONE << parameter) - ONE
    most = numel >> parameter
    position = np.uint64(0)
    expected = np.uint64(0)
    for _ in range(count):
        quotient = np.uint64(0)
        window = _window(stream, position)
        while window == 0:
            quotient += WORD_BITS
            position += WORD_BITS
            if position >= bits:
                return TRUNCATED
            window = _window(stream, position)
        run = trailing_zeros(window)
        quotient += run
        position += run + ONE
        if position + parameter > bits:
            return TRUNCATED
        if quotient > most:
            return BEYOND
        inside = run + parameter < WORD_BITS
        remainder = (((window >> run) >> ONE) if inside else _window(stream, position)) & low
        position += parameter
        index = expected + ((quotient << parameter) | remainder)
        if index >= numel:
            return BEYOND
        mask[index >> np.uint64(3)] |= np.uint8(ONE << (index & np.uint64(7)))
        expected = index + ONE
    if bits - position >= np.uint64(8):
        return UNREAD
    return 0 if _window(stream, position) == 0 else PADDED


def parameter_for(count: int, numel: int) -> int:
    """Choose the low bits per gap for `count` of `numel` bits set: the optimum for geometric gaps.

    Source: A. Kiely, "Selecting the Golomb parameter in Rice coding", IPN Progress Report 42-159, 2004, eq. 8,
    with -1 / ln(1 - p) taken as 1 / p - 1 / 2, in integers so that every machine chooses alike.
    """
    parameter = 0
    # ln((1 + sqrt 5) / 2) = 0.4812
    while parameter < MAX_PARAMETER and (2 * count * 10_000) << parameter < 4812 * (2 * numel - count) and count:
        parameter += 1
    return parameter


def encode(mask: NDArray[np.uint8], numel: int) -> tuple[int, NDArray[np.uint8]]:
    """Code the gaps between the bits set in `mask` uint8[ceil(numel / 8)]; give the parameter and the bytes."""
    mask = vector(mask, np.uint8, "mask")
    _fits(mask, numel)
    count = popcount(mask)
    parameter = parameter_for(count, numel)
    most_bits = count * (1 + parameter) + (numel >> parameter)
    out = np.zeros(most_bits // 64 + 2, np.uint64)
    bits = int(_encode(words(mask, 0), np.uint64(parameter), out))
    return parameter, out.view(np.uint8)[: (bits + 7) // 8].copy()


def size_bits(mask: NDArray[np.uint8], parameter: int) -> int:
    """Count the bits that `encode` would write with this parameter, exactly."""
    return int(_size_bits(words(vector(mask, np.uint8, "mask"), 0), np.uint64(_checked(parameter))))


def decode(data: NDArray[np.uint8], parameter: int, numel: int, count: int) -> NDArray[np.uint8]:
    """Undo `encode`: a mask uint8[ceil(numel / 8)] with `count` bits set.

    Raises:
        PayloadError: the bytes are not the code of such a mask.
    """
    data = vector(data, np.uint8, "data")
    if not 0 <= parameter <= MAX_PARAMETER:
        raise PayloadError(Defect.TABLE, f"Rice parameter: expected 0 to {MAX_PARAMETER}, got {parameter}")
    if not 0 <= count <= numel or count * (1 + parameter) > 8 * data.size:
        raise PayloadError(Defect.COUNT, f"{count} set bits do not fit {data.size} bytes and {numel} coordinates")
    mask = np.zeros((numel + 7) // 8, np.uint8)
    bits = np.uint64(8 * data.size)
    status = int(_decode(words(data, 16), bits, np.uint64(parameter), np.uint64(numel), int(count), mask))
    if status == TRUNCATED:
        raise PayloadError(Defect.STREAM, f"Rice code ends inside one of {count} gaps")
    if status == BEYOND:
        raise PayloadError(Defect.STREAM, f"Rice code sets a bit past coordinate {numel}")
    if status == UNREAD:
        raise PayloadError(Defect.COUNT, f"Rice code goes on after {count} gaps")
    if status == PADDED:
        raise PayloadError(Defect.PADDING, "Rice code: expected zeros after the last gap")
    return mask


def _checked(parameter: int) -> int:
    if not 0 <= parameter <= MAX_PARAMETER:
        raise ValueError(f"parameter: expected 0 to {MAX_PARAMETER}, got {parameter}")
    return parameter


def _fits(mask: NDArray[np.uint8], numel: int) -> None:
    if mask.size != (numel + 7) // 8 or (numel & 7 and mask[-1] >> (numel & 7)):
        raise ValueError(f"mask: expected {numel} bits in {(numel + 7) // 8} bytes, padded with zeros")
