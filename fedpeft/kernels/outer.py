"""Sums of outer products, in one order on every machine."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector, writable


@kernel
def _add(left: NDArray[np.float32], right: NDArray[np.float32], rank: int, out: NDArray[np.float32]) -> None:
    rows, columns = left.size // rank, right.size // rank
    for i in range(rows):
        for k in range(rank):
            value = left[i * rank + k]
            for j in range(columns):
                out[i * columns + j] += value * right[k * columns + j]


def add_outer(left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Add left @ right to `out`, one rank after the other: a library's matrix product sums as its processor likes.

    Args:
        left: float32[m, r].
        right: float32[r, n].
        out: float32[m * n], row by row.

    >>> out = np.zeros(4, np.float32)
    >>> add_outer(np.array([[1], [2]], np.float32), np.array([[3, 5]], np.float32), out)
    >>> out.tolist()
    [3.0, 5.0, 6.0, 10.0]

    Raises:
        ValueError: the sizes do not fit.
    """
    writable(out, np.float32, "out")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != len(right) or len(left) * right.shape[1] != out.size:
        raise ValueError(f"expected (m, r) and (r, n) for {out.size} numbers, got {left.shape} and {right.shape}")
    if left.size and right.size:
        _add(
            vector(left.reshape(-1), np.float32, "left"),
            vector(right.reshape(-1), np.float32, "right"),
            len(right),
            out,
        )
