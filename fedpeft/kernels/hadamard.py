"""The randomised Walsh-Hadamard transform: a rotation that costs additions alone."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector, writable

CACHED = 1 << 15  # numbers that all stages up to theirs are done on at once
FAR = 8 * CACHED
SIGN = np.uint32(31)


@kernel
def _eight(x: NDArray[np.float32], begin: int, n: int, h: int) -> None:
    """The stages of distances h, 2h and 4h over x[begin:begin + n]; vector instructions where h is a constant."""
    for i in range(begin, begin + n, 8 * h):
        for j in range(np.uint64(i), np.uint64(i + h)):
            j1, j2, j3, j4 = j + np.uint64(h), j + np.uint64(2 * h), j + np.uint64(3 * h), j + np.uint64(4 * h)
            j5, j6, j7 = j + np.uint64(5 * h), j + np.uint64(6 * h), j + np.uint64(7 * h)
            a0, a1, a2, a3, a4, a5, a6, a7 = x[j], x[j1], x[j2], x[j3], x[j4], x[j5], x[j6], x[j7]
            b0, b1, b2, b3, b4, b5, b6, b7 = a0 + a1, a0 - a1, a2 + a3, a2 - a3, a4 + a5, a4 - a5, a6 + a7, a6 - a7
            a0, a1, a2, a3, a4, a5, a6, a7 = b0 + b2, b1 + b3, b0 - b2, b1 - b3, b4 + b6, b5 + b7, b4 - b6, b5 - b7
            x[j], x[j1], x[j2], x[j3] = a0 + a4, a1 + a5, a2 + a6, a3 + a7
            x[j4], x[j5], x[j6], x[j7] = a0 - a4, a1 - a5, a2 - a6, a3 - a7


@kernel
def _last(x: NDArray[np.float32], begin: int, n: int, h: int) -> None:
    """The stages that are left after distance h / 2, where n is h, 2h or 4h."""
    if n == 2 * h:
        for j in range(np.uint64(begin), np.uint64(begin + h)):
            k = j + np.uint64(h)
            a, b = x[j], x[k]
            x[j], x[k] = a + b, a - b
    elif n == 4 * h:
        for j in range(np.uint64(begin), np.uint64(begin + h)):
            j1, j2, j3 = j + np.uint64(h), j + np.uint64(2 * h), j + np.uint64(3 * h)
            a, b, c, d = x[j], x[j1], x[j2], x[j3]
            p, q, r, s = a + b, a - b, c + d, c - d
            x[j], x[j1], x[j2], x[j3] = p + r, q + s, p - r, q - s


@kernel
def _near(x: NDArray[np.float32], begin: int, n: int) -> None:
    """All stages over at most `CACHED` numbers, with constant distances."""
    h = 1
    if n >= 8:
        _eight(x, begin, n, 1)
        h = 8
    if n >= 64:
        _eight(x, begin, n, 8)
        h = 64
    if n >= 512:
        _eight(x, begin, n, 64)
        h = 512
    if n >= 4096:
        _eight(x, begin, n, 512)
        h = 4096
    if n >= CACHED:
        _eight(x, begin, n, 4096)
        h = CACHED
    _last(x, begin, n, h)


@kernel
def butterflies(x: NDArray[np.float32], begin: int, n: int) -> None:
    """Inside a kernel: transform x[begin:begin + n], of a power of two of numbers, in place."""
    if n <= CACHED:
        _near(x, begin, n)
        return
    for i in range(begin, begin + n, min(n, FAR)):
        for j in range(i, i + min(n, FAR), CACHED):
            _near(x, j, CACHED)
        if n >= FAR:
            _eight(x, i, FAR, CACHED)
    h = FAR if n >= FAR else CACHED
    while 8 * h <= n:
        for i in range(begin, begin + n, 8 * h):
            _eight(x, i, 8 * h, h)
        h *= 8
    _last(x, begin, n, h)


@kernel
def _transform(x: NDArray[np.float32], edges: NDArray[np.int64]) -> None:
    for k in range(edges.size - 1):
        butterflies(x, edges[k], edges[k + 1] - edges[k])


@kernel
def turn_signs(
    source: NDArray[np.uint32], words: NDArray[np.uint32], begin: int, n: int, out: NDArray[np.uint32]
) -> None:
    """Inside a kernel: copy n numbers' bits, the sign of source[i] turned where bit begin + i of `words` is set.

    Two words at once: a loop of 32 is unrolled before it could become vector instructions.
    """
    first, whole = (begin + 63) >> 6, (begin + n) >> 6
    at = min(n, 64 * first - begin)
    for i in range(at):
        out[i] = source[i] ^ ((words[(begin + i) >> 5] >> np.uint32((begin + i) & 31)) << SIGN)
    for w in range(first, whole):
        word = np.uint64(words[2 * w]) | (np.uint64(words[2 * w + 1]) << np.uint64(32))
        for lane in range(np.uint64(64)):
            k = np.uint64(64 * w - begin) + lane
            out[k] = source[k] ^ (np.uint32(word >> lane) << SIGN)
    for i in range(max(at, 64 * whole - begin), n):
        out[i] = source[i] ^ ((words[(begin + i) >> 5] >> np.uint32((begin + i) & 31)) << SIGN)


@kernel
def _sample(
    x: NDArray[np.uint32],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    factors: NDArray[np.float32],
    scratch: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    r = 0
    for k in range(edges.size - 1):
        begin, n = edges[k], edges[k + 1] - edges[k]
        if r == rows.size or rows[r] >= begin + n:
            continue
        turn_signs(x[begin : begin + n], words, begin, n, scratch.view(np.uint32))
        butterflies(scratch, 0, n)
        while r < rows.size and rows[r] < begin + n:
            out[r] = scratch[rows[r] - begin] * factors[k]
            r += 1


@kernel
def _spread(
    y: NDArray[np.float32],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    factors: NDArray[np.float32],
    scratch: NDArray[np.float32],
    out: NDArray[np.uint32],
) -> None:
    r = 0
    for k in range(edges.size - 1):
        begin, n = edges[k], edges[k + 1] - edges[k]
        if r == rows.size or rows[r] >= begin + n:
            out[begin : begin + n] = 0
            continue
        scratch[:n] = 0
        while r < rows.size and rows[r] < begin + n:
            scratch[rows[r] - begin] = y[r] * factors[k]
            r += 1
        butterflies(scratch, 0, n)
        turn_signs(scratch.view(np.uint32), words, begin, n, out[begin : begin + n])


def walsh_hadamard(x: NDArray[np.float32], edges: NDArray[np.int64]) -> None:
    """Multiply each block of `x` by the Hadamard matrix of +1 and -1, in place; twice gives its size times itself.

    The stages are (a, b) -> (a + b, a - b) over distance 1, 2, 4, ..., so every implementation that keeps to them,
    on whatever device, gives the same bits.

    Args:
        x: float32[n].
        edges: int64[m + 1], rising from 0 to n; block k is x[edges[k]:edges[k + 1]], of a power of two of numbers.

    Raises:
        ValueError: the edges are not such.
    """
    writable(x, np.float32, "x")
    _transform(x, checked_edges(edges, x.size))


def flip_signs(x: NDArray[np.float32], words: NDArray[np.uint32]) -> None:
    """Negate x[i] in place where bit i % 32 of words[i // 32] is set.

    Raises:
        ValueError: there are too few words.
    """
    writable(x, np.float32, "x")
    bits = x.view(np.uint32)
    turn_signs(bits, enough_words(words, x.size), 0, x.size, bits)


def sample_hadamard(
    x: NDArray[np.float32],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    factors: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Some numbers of what `flip_signs` and then `walsh_hadamard` make of `x`, each times the factor of its block.

    A block is copied into the processor's cache and done with there, or passed over where no row is its own.

    Args:
        x: float32[n].
        edges: as in `walsh_hadamard`.
        words: uint32[>= n / 32].
        rows: int64[k], rising, in [0, n): which numbers.
        factors: float32[m].
    """
    x = vector(x, np.float32, "x")
    edges, factors, rows = _blocks(edges, factors, rows, x.size)
    out = np.empty(rows.size, np.float32)
    _sample(x.view(np.uint32), edges, enough_words(words, x.size), rows, factors, scratch_of(edges), out)
    return out


def spread_hadamard(
    y: NDArray[np.float32],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    factors: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The transpose of `sample_hadamard`: float32[n] from float32[k]."""
    n = int(edges[-1])
    y = vector(y, np.float32, "y")
    edges, factors, rows = _blocks(edges, factors, rows, n)
    if y.size != rows.size:
        raise ValueError(f"y: expected one number for each of {rows.size} rows, got {y.size}")
    out = np.empty(n, np.float32)
    _spread(y, edges, enough_words(words, n), rows, factors, scratch_of(edges), out.view(np.uint32))
    return out


def halving_edges(n: int, block: int) -> NDArray[np.int64]:
    """Edges of blocks that fill [0, n): as many of one size as there is room for, then halves of it that still fit.

    >>> halving_edges(23, 8).tolist()
    [0, 8, 16, 20, 22, 23]

    Args:
        n: at least 0.
        block: the largest size, a power of two.
    """
    sizes = [block] * (n // block) + [1 << bit for bit in reversed(range(block.bit_length() - 1)) if n >> bit & 1]
    return np.cumsum([0, *sizes])


def checked_edges(edges: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Blocks of powers of two that cut [0, n).

    Raises:
        ValueError: they are not.
    """
    edges = vector(edges, np.int64, "edges")
    sizes = np.diff(edges)
    if not edges.size or edges[0] != 0 or edges[-1] != n or np.any(sizes < 1) or np.any(sizes & (sizes - 1)):
        raise ValueError(f"edges: expected blocks of powers of two from 0 to {n}, got {edges[:3]}...{edges[-1:]}")
    return edges


def _blocks(
    edges: NDArray[np.int64], factors: NDArray[np.float32], rows: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    edges, factors, rows = (
        checked_edges(edges, n),
        vector(factors, np.float32, "factors"),
        vector(rows, np.int64, "rows"),
    )
    if factors.size != edges.size - 1:
        raise ValueError(f"factors: expected one for each of {edges.size - 1} blocks, got {factors.size}")
    if rows.size and (rows[0] < 0 or rows[-1] >= n or np.any(rows[1:] <= rows[:-1])):
        raise ValueError(f"rows: expected to rise within [0, {n}), got {rows[:3]}...{rows[-1:]}")
    return edges, factors, rows


def enough_words(words: NDArray[np.uint32], n: int) -> NDArray[np.uint32]:
    """Words that have a bit for each of n numbers.

    Raises:
        ValueError: they have not.
    """
    words = vector(words, np.uint32, "words")
    if 32 * words.size < n:
        raise ValueError(f"words: expected at least {-(-n // 32)}, got {words.size}")
    return words


def scratch_of(edges: NDArray[np.int64]) -> NDArray[np.float32]:
    """Room for the largest block."""
    return np.empty(int(np.diff(edges).max(initial=0)), np.float32)
