"""Directions that both ends of a codec find alike, bit for bit."""

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels


def leading_rows(step: NDArray[np.float32], rank: int, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Orthonormal rows that (nearly) hold the leading right singular vectors, or random ones of a matrix of zeros.

    Args:
        step: float32[m, n], contiguous.
        rank: how many; at most n.
        words: uint32[rank * (m + n)], random.

    Returns:
        float32[rank, n]
    """
    spare, tried = (part.reshape(rank, -1) for part in np.split(words / 2.0**31 - 1, [rank * step.shape[1]]))
    largest = float(np.abs(step).max(initial=0.0))
    if not largest:
        return kernels.orthonormal(spare, spare).astype(np.float32)
    there = (step / np.float64(largest)).astype(np.float32)
    back = np.ascontiguousarray(there.T)
    rows = kernels.orthonormal(_product(tried, there), spare)
    rows = _product(_product(rows, back), there)
    return kernels.orthonormal(rows, spare).astype(np.float32)


def _product(rows: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    out = np.zeros(len(rows) * matrix.shape[1], np.float32)
    kernels.add_outer(rows.astype(np.float32), matrix, out)
    return out.reshape(len(rows), -1).astype(np.float64)
