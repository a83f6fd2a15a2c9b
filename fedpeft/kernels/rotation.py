"""Random rotations of blocks that stay in cache: read once, turned, quantised, written as codes; and back."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.hadamard import butterflies, checked_edges, enough_words, scratch_of, turn_signs
from fedpeft.kernels.jit import kernel, vector
from fedpeft.kernels.normal import Steps, quantise_block, steps_of


@kernel
def _rotate(
    x: NDArray[np.float32],
    starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    factor: np.float32,
    count: int,
    steps: Steps,
    codes: NDArray[np.uint8],
    sums: NDArray[np.float64],
    scratch: NDArray[np.float32],
) -> None:
    bits = x.view(np.uint32)
    for k in range(edges.size - 1):
        begin, n, held = edges[k], edges[k + 1] - edges[k], starts[k + 1] - starts[k]
        turn_signs(bits[starts[k] : starts[k + 1]], words, begin, held, scratch.view(np.uint32))
        for i in range(held):
            scratch[i] *= factor
        scratch[held:n] = 0.0
        butterflies(scratch, 0, n)
        quantise_block(scratch[:n], count, steps, codes[begin : begin + n], sums[k])


@kernel
def _rotate_back(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    levels: NDArray[np.float32],
    starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    scratch: NDArray[np.float32],
    out: NDArray[np.uint32],
) -> None:
    for k in range(edges.size - 1):
        begin, n, held = edges[k], edges[k + 1] - edges[k], starts[k + 1] - starts[k]
        scaled = levels * scales[k]
        for i in range(n):
            scratch[i] = scaled[codes[begin + i]]
        butterflies(scratch, 0, n)
        turn_signs(scratch.view(np.uint32), words, begin, held, out[starts[k] : starts[k + 1]])


def rotate_and_quantise(
    x: NDArray[np.float32],
    starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
    factor: float,
    levels: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """`quantise_normal` of the Hadamard transforms of blocks of factor * x, with random signs and zeros behind.

    Args:
        x: float32[n], finite.
        starts: int64[m + 1], rising from 0 to n: block k is made of x[starts[k]:starts[k + 1]].
        edges: as in `walsh_hadamard`; block k is padded to edges[k + 1] - edges[k] numbers.
        words: of signs, as in `flip_signs`, of all padded numbers.
        factor: float32.
        levels: as in `quantise_normal`.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    x, levels = vector(x, np.float32, "x"), vector(levels, np.float32, "levels")
    edges, words = _fitting(starts, edges, words, x.size)
    codes, sums = np.empty(int(edges[-1]), np.uint8), np.empty((edges.size - 1, 3), np.float64)
    count, steps, scratch = levels.size, steps_of(levels), scratch_of(edges)
    _rotate(x, starts, edges, words, np.float32(factor), count, steps, codes, sums, scratch)
    return codes, np.ascontiguousarray(sums.T)


def rotate_back(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    levels: NDArray[np.float32],
    starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    words: NDArray[np.uint32],
) -> NDArray[np.float32]:
    """The Hadamard transforms of scaled levels, with their signs turned back, and without what was padded.

    Args:
        codes: uint8[d], below the number of levels.
        scales: float32[m], of each block.
        levels: float32[l], one for each code.
        starts: as in `rotate_and_quantise`.
        edges: the same.
        words: the same.

    Returns:
        float32[n].

    Raises:
        ValueError: the numbers do not fit each other.
    """
    codes, levels = vector(codes, np.uint8, "codes"), vector(levels, np.float32, "levels")
    scales = vector(scales, np.float32, "scales")
    edges, words = _fitting(starts, edges, words, int(starts[-1]))
    if scales.size != edges.size - 1 or codes.size != edges[-1] or (codes.size and codes.max() >= levels.size):
        wanted = f"{edges[-1]} codes below {levels.size} and {edges.size - 1} scales"
        raise ValueError(f"expected {wanted}, got {codes.size} and {scales.size}")
    out = np.empty(int(starts[-1]), np.float32)
    _rotate_back(codes, scales, levels, starts, edges, words, scratch_of(edges), out.view(np.uint32))
    return out


def _fitting(
    starts: NDArray[np.int64], edges: NDArray[np.int64], words: NDArray[np.uint32], n: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    edges = checked_edges(edges, int(edges[-1]))
    starts, held = vector(starts, np.int64, "starts"), np.diff(starts)
    if starts.size != edges.size or starts[0] != 0 or starts[-1] != n or np.any((held < 0) | (held > np.diff(edges))):
        raise ValueError(f"starts: expected {edges.size} that rise from 0 to {n} by at most a block each, got {starts}")
    return edges, enough_words(words, int(edges[-1]))
