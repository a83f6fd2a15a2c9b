"""The orthonormal cosine transform of small blocks, in additions and multiplications of one fixed order."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector, writable

TOGETHER = 1 << 12  # numbers of the blocks that are transformed side by side, for loops worth a vector instruction


@kernel
def _weigh(
    x: NDArray[np.float32],
    row: int,
    row_step: int,
    count: int,
    c: NDArray[np.float32],
    place: int,
    place_step: int,
    out: NDArray[np.float32],
) -> None:
    """Write the sum of `count` rows of x, each as long as `out`, times as many coefficients of c."""
    m = out.size
    out[:] = 0
    i = 0
    while i + 4 <= count:
        a, b = c[place], c[place + place_step]
        d, e = c[place + 2 * place_step], c[place + 3 * place_step]
        p, q = x[row * m : (row + 1) * m], x[(row + row_step) * m : (row + row_step + 1) * m]
        row += 2 * row_step
        r, s = x[row * m : (row + 1) * m], x[(row + row_step) * m : (row + row_step + 1) * m]
        for j in range(m):
            out[j] += (a * p[j] + b * q[j]) + (d * r[j] + e * s[j])
        i, row, place = i + 4, row + 2 * row_step, place + 4 * place_step
    while i < count:
        a, p = c[place], x[row * m : (row + 1) * m]
        for j in range(m):
            out[j] += a * p[j]
        i, row, place = i + 1, row + row_step, place + place_step


@kernel
def _mirror(x: NDArray[np.float32], length: int, m: int) -> None:
    """Rows of the first half become sums with their mirror images, and these the differences."""
    for i in range(length >> 1):
        p, q = x[i * m : (i + 1) * m], x[(length - 1 - i) * m : (length - i) * m]
        for j in range(m):
            a, b = p[j], q[j]
            p[j], q[j] = a + b, a - b


@kernel
def _forward(x: NDArray[np.float32], n: int, m: int, c: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write C x for n rows of m numbers; x is lost.

    Cosines of even frequency are even about the middle and those of odd frequency odd, so that each half of the
    frequencies needs half of the rows; and the even half is a transform again.
    """
    length, stride = n, 1
    while length > 1 and length & 1 == 0:
        _mirror(x, length, m)
        for k in range(stride, n, 2 * stride):
            _weigh(x, length - 1, -1, length >> 1, c, k * n, 1, out[k * m : (k + 1) * m])
        length, stride = length >> 1, 2 * stride
    for k in range(0, n, stride):
        _weigh(x, 0, 1, length, c, k * n, 1, out[k * m : (k + 1) * m])


@kernel
def _inverse(x: NDArray[np.float32], n: int, m: int, c: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write C^T x for n rows of m numbers: `_forward` backwards."""
    length = n
    while length > 1 and length & 1 == 0:
        length >>= 1
    stride = n // length
    for i in range(length):
        _weigh(x, 0, stride, length, c, i, stride * n, out[i * m : (i + 1) * m])
    while length < n:
        half, length, stride = length, 2 * length, stride >> 1
        for i in range(half):
            row = length - 1 - i
            _weigh(x, stride, 2 * stride, half, c, stride * n + i, 2 * stride * n, out[row * m : (row + 1) * m])
        _mirror(out, length, m)


@kernel
def _load(
    x: NDArray[np.float32], at: int, row: int, h: int, w: int, to: NDArray[np.float32], first: int, m: int
) -> None:
    """Copy h rows of w numbers, `row` apart, to rows that are m apart."""
    for i in range(h):
        a, b = x[at + i * row : at + i * row + w], to[first + i * m : first + i * m + w]
        for j in range(w):
            b[j] = a[j]


@kernel
def _turn(
    x: NDArray[np.float32], at: int, row: int, h: int, w: int, to: NDArray[np.float32], first: int, m: int
) -> None:
    """Copy h rows of w numbers, `row` apart, to columns of rows that are m apart."""
    for i in range(h):
        a, b = x[at + i * row : at + i * row + w], to[first + i : first + i + (w - 1) * m + 1]
        for j in range(w):
            b[j * m] = a[j]


@kernel
def _grid(
    x: NDArray[np.float32],
    starts: NDArray[np.int64],
    blocks: NDArray[np.int64],
    columns: int,
    h: int,
    w: int,
    tall: NDArray[np.float32],
    wide: NDArray[np.float32],
    back: bool,
    out: NDArray[np.float32],
) -> None:
    """Transform blocks of h by w: starts[b] is where block b begins in the matrix, blocks[b] among the blocks."""
    together = max(1, min(starts.size, TOGETHER // (h * w)))
    near, far = np.empty(together * h * w, np.float32), np.empty(together * h * w, np.float32)
    for first in range(0, starts.size, together):
        g = min(together, starts.size - first)
        if back:
            for b in range(g):
                _turn(x, blocks[first + b], w, h, w, near, b * h, g * h)
            _inverse(near, w, g * h, wide, far)
            for b in range(g):
                _turn(far, b * h, g * h, w, h, near, b * w, g * w)
            if h > 1:
                _inverse(near, h, g * w, tall, far)
                near, far = far, near
            for b in range(g):
                _load(near, b * w, g * w, h, w, out, starts[first + b], columns)
        else:
            for b in range(g):
                _load(x, starts[first + b], columns, h, w, near, b * w, g * w)
            if h > 1:
                _forward(near, h, g * w, tall, far)
                near, far = far, near
            for b in range(g):
                _turn(near, b * w, g * w, h, w, far, b * h, g * h)
            _forward(far, w, g * h, wide, near)
            for b in range(g):
                _turn(near, b * h, g * h, w, h, out, blocks[first + b], w)


def cosine_blocks(
    x: NDArray[np.float32],
    starts: NDArray[np.int64],
    blocks: NDArray[np.int64],
    columns: int,
    tall: NDArray[np.float32],
    wide: NDArray[np.float32],
    out: NDArray[np.float32],
    *,
    back: bool = False,
) -> None:
    """Transform blocks of h rows and w columns along both sides: C_h B C_w^T, or C_h^T B C_w where `back`.

    Args:
        x: float32[n], a matrix row after row; where `back`, blocks one after another, each row after row.
        starts: int64[m], where the blocks begin in the matrix.
        blocks: int64[m], where they begin among the blocks.
        columns: of the matrix.
        tall: float32[h * h], C_h row after row.
        wide: float32[w * w], C_w row after row.
        out: float32[n], blocks one after another; where `back`, the matrix.
        back: undo it.

    Raises:
        ValueError: a block would lie outside.
    """
    x, starts, blocks = (
        vector(x, np.float32, "x"),
        vector(starts, np.int64, "starts"),
        vector(blocks, np.int64, "blocks"),
    )
    writable(out, np.float32, "out")
    h, w = isqrt(tall.size), isqrt(wide.size)
    if h * h != tall.size or w * w != wide.size or not 1 <= w <= columns or h < 1:
        raise ValueError(
            f"tall, wide: expected h * h and w * w numbers, w up to {columns}, got {tall.size}, {wide.size}"
        )
    inside = x.size == out.size and starts.size == blocks.size and starts.size > 0
    if not inside or min(starts.min(), blocks.min()) < 0 or blocks.max() + h * w > x.size:
        raise ValueError(f"blocks: expected places of {h} x {w} numbers among {x.size}")
    if starts.max() + (h - 1) * columns + w > x.size:
        raise ValueError(f"starts: expected places of {h} x {w} numbers in rows of {columns} among {x.size}")
    tables = vector(tall, np.float32, "tall"), vector(wide, np.float32, "wide")
    _grid(x, starts, blocks, int(columns), h, w, *tables, bool(back), out)
