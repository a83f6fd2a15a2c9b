"""Entropy coding of bytes: range asymmetric numeral systems, eight interleaved streams."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels.jit import kernel, vector

PRECISION = 14
TOTAL = 1 << PRECISION
LANES = 8
HEADER_BYTES = 4 * LANES
START = np.uint64(1 << 16)
WORD = np.uint64(0xFFFF)
SIXTEEN = np.uint64(16)
SLOT = np.uint64(TOTAL - 1)
RECIPROCAL_BITS = np.uint64(46)
SHIFT = np.uint64(PRECISION)


@kernel
def _histogram(symbols: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Count into four tables in turn: a run of one symbol would else wait for its own stores."""
    tables = np.zeros(1024, np.int64)
    n = symbols.size
    for i in range(0, n - 3, 4):
        tables[np.uint64(symbols[i])] += 1
        tables[np.uint64(256) + np.uint64(symbols[i + 1])] += 1
        tables[np.uint64(512) + np.uint64(symbols[i + 2])] += 1
        tables[np.uint64(768) + np.uint64(symbols[i + 3])] += 1
    for i in range(n & ~3, n):
        tables[np.uint64(symbols[i])] += 1
    for s in range(256):
        counts[s] = tables[s] + tables[256 + s] + tables[512 + s] + tables[768 + s]


@kernel
def _push(
    x: np.uint64,
    s: np.uint8,
    first: int,
    table: NDArray[np.uint64],
    reciprocal: NDArray[np.uint64],
    out: NDArray[np.uint16],
) -> tuple[np.uint64, int]:
    """Code one symbol: x' = (x // f) * 2^14 + start + x % f, after moving 16 bits out if x' would not fit 32.

    x < 2^18 f and the reciprocal is ceil(2^46 / f), so the product stays below 2^64 and the quotient is exact
    (T. Granlund, P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994).
    """
    entry = table[s]
    f = entry >> SIXTEEN
    full = x >= (f << np.uint64(18))
    out[first - 1] = np.uint16(x & WORD)
    if full:
        x >>= SIXTEEN
    first -= full
    quotient = (x * reciprocal[s]) >> RECIPROCAL_BITS
    return x + (entry & WORD) + quotient * (np.uint64(TOTAL) - f), first


@kernel
def _encode(
    symbols: NDArray[np.uint8],
    table: NDArray[np.uint64],
    reciprocal: NDArray[np.uint64],
    states: NDArray[np.uint64],
    out: NDArray[np.uint16],
) -> int:
    """Code from the last symbol to the first; words fill `out` (one more than symbols) from its end."""
    first = out.size
    n = symbols.size
    for i in range(n - 1, (n & ~7) - 1, -1):
        states[i & 7], first = _push(states[i & 7], symbols[i], first, table, reciprocal, out)
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7]
    )  # fmt: skip
    for i in range((n & ~7) - 8, -8, -8):
        x7, first = _push(x7, symbols[i + 7], first, table, reciprocal, out)
        x6, first = _push(x6, symbols[i + 6], first, table, reciprocal, out)
        x5, first = _push(x5, symbols[i + 5], first, table, reciprocal, out)
        x4, first = _push(x4, symbols[i + 4], first, table, reciprocal, out)
        x3, first = _push(x3, symbols[i + 3], first, table, reciprocal, out)
        x2, first = _push(x2, symbols[i + 2], first, table, reciprocal, out)
        x1, first = _push(x1, symbols[i + 1], first, table, reciprocal, out)
        x0, first = _push(x0, symbols[i], first, table, reciprocal, out)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return first


@kernel
def _pull(
    x: np.uint64,
    position: np.uint64,
    stream: NDArray[np.uint16],
    table: NDArray[np.uint64],
    symbol_of: NDArray[np.uint8],
) -> tuple[np.uint64, np.uint64, np.uint8]:
    """Decode one symbol from state `x` and refill the state from the stream when it falls below 2^16."""
    slot = x & SLOT
    s = symbol_of[slot]
    entry = table[s]
    x = (entry >> SIXTEEN) * (x >> SHIFT) + slot - (entry & WORD)
    refilled = (x << SIXTEEN) | np.uint64(stream[position])
    low = x < START
    return (refilled if low else x), position + np.uint64(low), s


@kernel
def _decode(
    stream: NDArray[np.uint16],
    size: np.uint64,
    table: NDArray[np.uint64],
    symbol_of: NDArray[np.uint8],
    states: NDArray[np.uint64],
    out: NDArray[np.uint8],
) -> bool:
    """Decode all of `out`; whether `size` words were used, no fewer and no more.

    Eight symbols use at most eight words and `stream` has eight to spare, so one check for every eight is enough.
    """
    n = out.size
    position = np.uint64(0)
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7]
    )  # fmt: skip
    for i in range(0, n - 7, 8):
        if position > size:
            return False
        x0, position, out[i] = _pull(x0, position, stream, table, symbol_of)
        x1, position, out[i + 1] = _pull(x1, position, stream, table, symbol_of)
        x2, position, out[i + 2] = _pull(x2, position, stream, table, symbol_of)
        x3, position, out[i + 3] = _pull(x3, position, stream, table, symbol_of)
        x4, position, out[i + 4] = _pull(x4, position, stream, table, symbol_of)
        x5, position, out[i + 5] = _pull(x5, position, stream, table, symbol_of)
        x6, position, out[i + 6] = _pull(x6, position, stream, table, symbol_of)
        x7, position, out[i + 7] = _pull(x7, position, stream, table, symbol_of)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    if position > size:
        return False
    for i in range(n & ~7, n):
        states[i & 7], position, out[i] = _pull(states[i & 7], position, stream, table, symbol_of)
    return bool(position == size)


def histogram(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count each of the 256 symbols in uint8[n]."""
    counts = np.empty(256, np.int64)
    _histogram(vector(symbols, np.uint8, "symbols"), counts)
    return counts


def _table(freq: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Put frequency << 16 | start into one word for each symbol."""
    wide = freq.astype(np.uint64)
    start = np.cumsum(wide) - wide
    return wide << SIXTEEN | start & WORD


def encode(symbols: NDArray[np.uint8], freq: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Code uint8[n] with frequencies uint32[256] that sum to 2^14: eight 32-bit states, then 16-bit words.

    Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; F. Giesen, "Interleaved entropy coders",
    arXiv:1402.3392.

    Raises:
        ValueError: `freq` is no table, or gives 0 to a symbol that occurs.
    """
    symbols = vector(symbols, np.uint8, "symbols")
    if not is_table(freq):
        raise ValueError(f"freq: expected 256 frequencies that sum to {TOTAL}")
    if np.any((histogram(symbols) > 0) & (freq == 0)):
        raise ValueError("freq: a symbol that occurs has frequency 0")
    if symbols.size == 0:
        return np.empty(0, np.uint8)
    reciprocal = -(-(1 << int(RECIPROCAL_BITS)) // np.maximum(freq, 1).astype(np.int64))
    states = np.full(LANES, START)
    out = np.empty(symbols.size + 1, np.uint16)
    first = int(_encode(symbols, _table(freq), reciprocal.astype(np.uint64), states, out))
    return np.concatenate([states.astype("<u4").view(np.uint8), out[first:].astype("<u2").view(np.uint8)])


def decode(data: NDArray[np.uint8], freq: NDArray[np.uint32], n: int) -> NDArray[np.uint8]:
    """Undo `encode` for n symbols.

    Raises:
        PayloadError: `freq` is no table, or `data` is not what `encode` gives for any n symbols.
    """
    data = vector(data, np.uint8, "data")
    if not is_table(freq):
        raise PayloadError(Defect.TABLE, f"expected 256 frequencies that sum to {TOTAL}")
    out = np.empty(n, np.uint8)
    if n == 0 and data.size == 0:
        return out
    if n == 0 or data.size < HEADER_BYTES or data.size & 1:
        raise PayloadError(Defect.STREAM, f"{data.size} bytes cannot hold {n} symbols")
    states = data[:HEADER_BYTES].view("<u4").astype(np.uint64)
    size = (data.size - HEADER_BYTES) // 2
    stream = np.zeros(size + LANES, np.uint16)
    stream[:size] = data[HEADER_BYTES:].view("<u2")
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), freq)
    whole = states.min() >= START and _decode(stream, np.uint64(size), _table(freq), symbol_of, states, out)
    if not whole or np.any(states != START):
        raise PayloadError(Defect.STREAM, f"{data.size} bytes are not the code of {n} symbols")
    return out


def is_table(freq: NDArray[np.uint32]) -> bool:
    """Whether `freq` is uint32[256] and sums to 2^14."""
    return freq.shape == (256,) and freq.dtype == np.uint32 and int(freq.sum(dtype=np.uint64)) == TOTAL


def size_bytes(counts: NDArray[np.int64], freq: NDArray[np.uint32]) -> int:
    """Estimate, within a few bytes, what `encode` writes for symbols that occur `counts` int64[256] times."""
    used = counts > 0
    if not used.any():
        return 0
    bits = float(np.sum(counts[used] * (PRECISION - np.log2(np.maximum(freq[used], 1e-9)))))
    return 24 + int(bits / 8)
