"""Orthonormal rows, by the same operations in the same order on every machine."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

LANES = 8
LEAST = 1e-6  # of the longest row: what is shorter once the earlier rows are taken out is rounding


@kernel
def _dot(a: NDArray[np.float64], b: NDArray[np.float64], lanes: NDArray[np.float64]) -> float:
    """Sum in lanes, whose loop is compiled to vector instructions; their number fixes the order."""
    lanes[:] = 0.0
    n = a.size
    for i in range(0, n - LANES + 1, LANES):
        for lane in range(LANES):
            lanes[lane] += a[i + lane] * b[i + lane]
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    for i in range(n - n % LANES, n):
        total += a[i] * b[i]
    return total


@kernel
def _clear(rows: NDArray[np.float64], n: int, k: int, lanes: NDArray[np.float64]) -> float:
    """Take the rows before the k-th out of it, twice (once leaves what the first rounding did), and give its length."""
    row = rows[k * n : (k + 1) * n]
    for _ in range(2):
        for j in range(k):
            before = rows[j * n : (j + 1) * n]
            share = _dot(before, row, lanes)
            for i in range(n):
                row[i] -= share * before[i]
    return np.sqrt(_dot(row, row, lanes))  # type: ignore[no-any-return]


@kernel
def _orthonormalise(rows: NDArray[np.float64], spare: NDArray[np.float64], n: int) -> None:
    lanes = np.empty(LANES, np.float64)
    longest = 0.0
    for k in range(rows.size // n):
        row = rows[k * n : (k + 1) * n]
        longest = max(longest, np.sqrt(_dot(row, row, lanes)))
    for k in range(rows.size // n):
        row = rows[k * n : (k + 1) * n]
        length = _clear(rows, n, k, lanes)
        if length <= LEAST * longest:
            row[:] = spare[k * n : (k + 1) * n]
            length = _clear(rows, n, k, lanes)
        for i in range(n):
            row[i] /= length


def orthonormal(rows: NDArray[np.float64], spare: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give orthonormal rows that span the same (Gram and Schmidt); where a row adds nothing, a spare one stands in.

    Args:
        rows: float64[r, n], r <= n.
        spare: float64[r, n], of full rank and in no special position, as random numbers are.

    >>> orthonormal(np.array([[2.0, 0.0], [4.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 3.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Raises:
        ValueError: the shapes do not fit.
    """
    if rows.ndim != 2 or rows.shape != spare.shape or rows.shape[0] > rows.shape[1]:
        raise ValueError(f"expected two of (r, n) with r <= n, got {rows.shape} and {spare.shape}")
    found = vector(rows.reshape(-1).copy(), np.float64, "rows")
    _orthonormalise(found, vector(spare.reshape(-1), np.float64, "spare"), rows.shape[1])
    return found.reshape(rows.shape)
