"""Quantising what is nearly normal."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.hadamard import checked_edges
from fedpeft.kernels.jit import kernel, vector


@kernel
def _quantise(
    z: NDArray[np.float32],
    edges: NDArray[np.int64],
    middles: NDArray[np.float32],
    levels: NDArray[np.float32],
    codes: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> None:
    for k in range(edges.size - 1):
        begin, end = edges[k], edges[k + 1]
        square = 0.0
        for i in range(begin, end):
            square += np.float64(z[i]) * np.float64(z[i])
        deviation = np.float32(np.sqrt(square / (end - begin)))
        inner, quantised = 0.0, 0.0
        for i in range(begin, end):
            magnitude = abs(z[i])
            c = 0
            for middle in middles:
                c += magnitude > middle * deviation
            level = np.float64(levels[c])
            codes[i] = levels.size + c if z[i] >= 0 else levels.size - 1 - c
            inner += level * np.float64(magnitude)
            quantised += level * level
        sums[0, k], sums[1, k], sums[2, k] = square, inner, quantised


def quantise_normal(
    z: NDArray[np.float32], edges: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Nearest of +-levels times each block's root mean square.

    Args:
        z: float32[n].
        edges: as in `walsh_hadamard`.
        levels: float32[h], positive and rising.

    Returns:
        codes uint8[n] in [0, 2h): h + c stands for levels[c], h - 1 - c for its negative; and for each block the sums
        float64[3, m] of z^2, of the level times |z|, and of the level squared.
    """
    z, levels = vector(z, np.float32, "z"), vector(levels, np.float32, "levels")
    edges = checked_edges(edges, z.size)
    codes, sums = np.empty(z.size, np.uint8), np.empty((3, edges.size - 1), np.float64)
    middles = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    _quantise(z, edges, middles, levels, codes, sums)
    return codes, sums
