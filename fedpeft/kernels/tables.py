"""Frequency tables of the entropy coder: how counts become frequencies, and how a table is sent."""

from math import comb

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels.jit import kernel, vector
from fedpeft.kernels.planes import ONES
from fedpeft.kernels.rans import TOTAL, histogram, is_table

CLASS_SIZES = np.array([comb(8, c) for c in range(9)], np.int64)
PLACES = np.array([np.count_nonzero(ONES[:byte] == ONES[byte]) for byte in range(256)])  # of a byte in its class
LENGTH_BITS = 4


@kernel
def _share(counts: NDArray[np.int64], least: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Split `total` in proportion to `counts`, giving at least `least` to each that occurs.

    One more unit for symbol s saves counts[s] * log((f + 1) / f), nearly counts[s] / (f + 1/2), so units go to
    and come from where that quotient is best; in integers, so that every machine shares alike.
    """
    n = counts.size
    whole = counts.sum()
    shares = np.zeros(n, np.int64)
    for s in range(n):
        if counts[s] > 0:
            shares[s] = max(least[s], counts[s] * total // whole)
    left = total - shares.sum()
    step = 1 if left > 0 else -1
    for _ in range(abs(left)):
        best = -1
        for s in range(n):
            if counts[s] == 0 or (step < 0 and shares[s] == least[s]):
                continue
            gain = step * counts[s] * (2 * shares[best] + step)
            if best < 0 or gain > step * counts[best] * (2 * shares[s] + step):
                best = s
        shares[best] += step
    return shares


def _shares(counts: NDArray[np.int64], least: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = vector(counts, np.int64, "counts")
    if counts.size != least.size or np.any(counts < 0) or int(counts.max()) >= 1 << 40:
        raise ValueError(f"counts: expected {least.size} numbers in [0, 2**40), got {counts}")
    if not counts.any():
        counts = np.zeros_like(counts)
        counts[0] = 1
    shares: NDArray[np.int64] = _share(counts, least, TOTAL)
    return shares


def normalise(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Turn counts int64[256] into frequencies uint32[256] that sum to 2^14: 0 for what does not occur, else >= 1.

    Nothing counted gives the whole sum to symbol 0, so that an empty stream has a table too.
    """
    return _shares(counts, np.ones(256, np.int64)).astype(np.uint32)


def popcount_counts(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the bytes of uint8[...] by how many bits they set: int64[9]."""
    return np.bincount(ONES, histogram(mask), 9).astype(np.int64)


def class_masses(class_counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Share 2^14 slots among the nine popcount classes (int64[9] bytes counted): the 18-byte table of a mask.

    A class that occurs gets at least one slot for each of its comb(8, c) bytes.
    """
    return _shares(class_counts, CLASS_SIZES).astype(np.uint16)


def class_table(masses: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Give frequencies uint32[256]: bytes of one popcount share their class's slots as evenly as integers allow.

    Raises:
        PayloadError: the masses do not sum to 2^14, or leave a byte of a class that occurs without a slot.
    """
    wide = vector(masses, np.uint16, "masses").astype(np.int64)
    if wide.size != 9 or wide.sum() != TOTAL or np.any((wide > 0) & (wide < CLASS_SIZES)):
        raise PayloadError(
            Defect.TABLE, f"expected 9 classes of at least {CLASS_SIZES} that sum to {TOTAL}, got {wide}"
        )
    each, more = np.divmod(wide, CLASS_SIZES)
    freq: NDArray[np.uint32] = (each[ONES] + (more[ONES] > PLACES)).astype(np.uint32)
    return freq


def pack_table(freq: NDArray[np.uint32], levels: int) -> NDArray[np.uint8]:
    """Write the first `levels` frequencies: each its length in 4 bits, then its bits below the leading one.

    Raises:
        ValueError: `freq` is no table, or has symbols at `levels` or above.
    """
    if not is_table(freq) or not 1 <= levels <= 256 or freq[levels:].any():
        raise ValueError(f"freq: expected frequencies of {levels} levels that sum to {TOTAL}")
    stream = position = 0
    for value in freq[:levels].tolist():
        length = value.bit_length()
        stream |= length << position
        position += LENGTH_BITS
        if length > 1:
            stream |= (value ^ 1 << length - 1) << position
            position += length - 1
    return np.frombuffer(stream.to_bytes((position + 7) // 8, "little"), np.uint8)


def unpack_table(data: NDArray[np.uint8], levels: int) -> NDArray[np.uint32]:
    """Undo `pack_table`.

    Raises:
        PayloadError: the bytes are no table of `levels` frequencies that sum to 2^14, or go on after it.
    """
    if not 1 <= levels <= 256:
        raise ValueError(f"levels: expected 1 to 256, got {levels}")
    data = vector(data, np.uint8, "data")
    if data.size > 256 * (LENGTH_BITS + 14) // 8:
        raise PayloadError(Defect.TABLE, f"{data.size} bytes are too many for a table")
    stream, bits, position = int.from_bytes(data.tobytes(), "little"), 8 * data.size, 0
    freq = np.zeros(256, np.uint32)
    for s in range(levels):
        length = stream >> position & (1 << LENGTH_BITS) - 1
        position += LENGTH_BITS
        if length:
            rest = length - 1
            freq[s] = 1 << rest | stream >> position & (1 << rest) - 1
            position += rest
    if position > bits:
        raise PayloadError(Defect.TABLE, f"{data.size} bytes end inside a table of {levels} levels")
    if not is_table(freq):
        raise PayloadError(Defect.TABLE, f"frequencies sum to {freq.sum()}, expected {TOTAL}")
    if bits - position >= 8 or stream >> position:
        raise PayloadError(Defect.PADDING, f"expected zeros up to the byte after a table of {levels} levels")
    return freq
