"""The largest singular values of a matrix, with their vectors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpeft.random import Stream

_EXACT = 256  # the short side up to which all of them are found
_SPARE, _ITERATIONS = 8, 2  # beyond it: directions beside the rank, and products with M M^T
_ROUNDING = 1e-12


class Factors(NamedTuple):
    """sum_i values[i] left[:, i] right[i, :], where vectors have a root mean square of 1.

    Args:
        values: float32[r], falling.
        left: float16[m, r].
        right: float16[r, n].
    """

    values: NDArray[np.float32]
    left: NDArray[np.float16]
    right: NDArray[np.float16]


def leading(matrix: NDArray[np.float32], most: int, energy: float | None, stream: Stream) -> Factors:
    """The first singular values and vectors: `most` of them, or the fewest that have a share of the matrix's energy.

    Args:
        matrix: float32[m, n], finite.
        most: from 1 to min(m, n).
        energy: share of the sum of squares, in (0, 1].
        stream: where an iteration starts, which a short side above 256 needs.
    """
    values, left, right = _leading(matrix, most, energy, stream)
    return Factors(values.astype(np.float32), left.astype(np.float16), right.astype(np.float16))


def leading_weighed(
    matrix: NDArray[np.float32], gram: NDArray[np.float64], most: int, energy: float | None, stream: Stream
) -> Factors:
    """Factors of the matrix M^ of that rank, or energy, for which tr((M - M^)^T G (M - M^)) is least.

    Args:
        matrix: float32[m, n], finite.
        gram: G, float64[m, m], positive definite.
        most: as for `leading`.
        energy: share of tr(M^T G M), in (0, 1].
        stream: as for `leading`.
    """
    squares, axes = np.linalg.eigh(gram)
    root = axes * np.sqrt(squares) @ axes.T
    most_grown = np.abs(root).sum(axis=1).max()
    values, left, right = _leading((root / most_grown @ matrix).astype(np.float32), most, energy, stream)
    left = axes * (most_grown / np.sqrt(squares)) @ axes.T @ left
    lengths = np.sqrt(np.square(left).mean(axis=0))
    left /= np.where(lengths > 0, lengths, 1)
    return Factors((values * lengths).astype(np.float32), left.astype(np.float16), right.astype(np.float16))


def _leading(
    matrix: NDArray[np.float32], most: int, energy: float | None, stream: Stream
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    m, n = matrix.shape
    largest = float(np.abs(matrix).max())
    if not largest:
        r = most if energy is None else 0
        return np.zeros(r), np.zeros((m, r)), np.zeros((r, n))
    wide = matrix if m <= n else matrix.T
    # Divided by its largest, a matrix times a power of two has the same vectors, bit for bit.
    scaled = wide / np.float64(largest) if len(wide) <= _EXACT else wide / np.float32(largest)
    basis, image = _directions(scaled, most, stream)
    squares, vectors = np.linalg.eigh(image @ image.T)
    squares, vectors = np.maximum(squares[::-1][:most], 0), vectors[:, ::-1][:, :most]
    if energy is not None:
        wanted = (1 - _ROUNDING) * energy * np.square(scaled, dtype=np.float64).sum()
        most = min(most, 1 + int(np.searchsorted(np.cumsum(squares), wanted)))
    vectors = vectors[:, :most]
    other = vectors.T @ image
    lengths = np.linalg.norm(other, axis=1)
    left = basis @ vectors * np.sqrt(len(wide))
    right = other / np.where(lengths > 0, lengths, 1)[:, None] * np.sqrt(wide.shape[1])
    values = lengths * (largest / np.sqrt(matrix.size))
    return (values, left, right) if m <= n else (values, right.T, left.T)


def _directions(
    wide: NDArray[np.floating], most: int, stream: Stream
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Orthonormal columns that (nearly) hold the leading left vectors, and their transpose times the matrix."""
    short, long = wide.shape
    if short <= _EXACT:
        return np.eye(short), wide.astype(np.float64)
    count = min(short, most + _SPARE)
    tried = wide @ stream.normal(long * count).astype(np.float32).reshape(long, count)
    for _ in range(_ITERATIONS):
        held = np.linalg.qr(wide.T @ np.linalg.qr(tried).Q).Q
        tried = wide @ held
    basis = np.linalg.qr(tried).Q
    return basis, (basis.T @ wide).astype(np.float64)
