"""Blocks of coordinates that share a step: their magnitudes, and rounding to multiples of it."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector

MAGNITUDE = np.int32(0x7FFFFFFF)
# Added to a float32 below 2^22 and taken off again, it leaves the nearest integer, the even one of two.
ROUNDER = np.float32(3 << 22)
UNIT = 2.0**-32


@kernel
def _largest(bits: NDArray[np.int32], edges: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    for k in range(out.size):
        most = np.int32(0)
        block = bits[edges[k] : edges[k + 1]]
        for i in range(block.size):
            most = max(most, block[i] & MAGNITUDE)
        out[k] = most


@kernel
def _squares(x: NDArray[np.float32], edges: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Four sums in turn, so that none waits for the one before; their order is fixed."""
    for k in range(out.size):
        begin, end = edges[k], edges[k + 1]
        whole = begin + ((end - begin) & ~3)
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for i in range(begin, whole, 4):
            a += np.float64(x[i]) * np.float64(x[i])
            b += np.float64(x[i + 1]) * np.float64(x[i + 1])
            c += np.float64(x[i + 2]) * np.float64(x[i + 2])
            d += np.float64(x[i + 3]) * np.float64(x[i + 3])
        for i in range(whole, end):
            a += np.float64(x[i]) * np.float64(x[i])
        out[k] = (a + b) + (c + d)


@kernel
def _round(
    x: NDArray[np.float32], edges: NDArray[np.int64], steps: NDArray[np.float32], half: int, codes: NDArray[np.uint8]
) -> None:
    most = np.float32(half)
    for k in range(steps.size):
        step = steps[k]
        if step == 0:
            codes[edges[k] : edges[k + 1]] = half
            continue
        block, code = x[edges[k] : edges[k + 1]], codes[edges[k] : edges[k + 1]]
        for i in range(block.size):
            scaled = min(max(block[i] / step, -most), most)
            code[i] = np.uint8(np.int32((scaled + ROUNDER) - ROUNDER) + np.int32(half))


@kernel
def _round_at_random(
    x: NDArray[np.float32],
    edges: NDArray[np.int64],
    steps: NDArray[np.float32],
    half: int,
    words: NDArray[np.uint32],
    codes: NDArray[np.uint8],
) -> None:
    """In float64, which holds all 32 bits of a word: in float32 one close to 1 would round up to it."""
    for k in range(steps.size):
        step = steps[k]
        if step == 0:
            codes[edges[k] : edges[k + 1]] = half
            continue
        block, code = x[edges[k] : edges[k + 1]], codes[edges[k] : edges[k + 1]]
        word = words[edges[k] : edges[k + 1]]
        for i in range(block.size):
            scaled = np.floor(np.float64(block[i] / step) + np.float64(word[i]) * UNIT)
            code[i] = np.uint8(np.int32(min(max(scaled, -np.float64(half)), np.float64(half))) + np.int32(half))


def checked_blocks(edges: NDArray[np.int64], n: int, each: int | None = None) -> NDArray[np.int64]:
    """Give edges of blocks as a kernel takes them.

    Raises:
        ValueError: they do not rise from 0 to n, or are not those of `each` blocks.
    """
    edges = vector(edges, np.int64, "edges")
    if not edges.size or edges[0] != 0 or edges[-1] != n or np.any(edges[1:] < edges[:-1]):
        raise ValueError(f"edges: expected to rise from 0 to {n}, got {edges[:3]}...{edges[-1:]}")
    if each is not None and each != edges.size - 1:
        raise ValueError(f"expected one step for each of {edges.size - 1} blocks, got {each}")
    return edges


def block_edges(bounds: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """Cut slots into blocks that hold `size` coordinates, or what is left of their slot.

    >>> block_edges((0, 5, 5, 7), 2).tolist()
    [0, 2, 4, 5, 7]

    Args:
        bounds: where each slot begins, and the end.
        size: at least 1.
    """
    starts = [np.arange(begin, end, size, dtype=np.int64) for begin, end in pairwise(bounds)]
    return np.concatenate([*starts, np.array(bounds[-1:], np.int64)])


def block_largest(x: NDArray[np.float32], edges: NDArray[np.int64]) -> NDArray[np.float32]:
    """Give float32[m], the largest magnitude of each block `x[edges[k]:edges[k + 1]]`, and 0 of an empty one."""
    x = vector(x, np.float32, "x")
    edges = checked_blocks(edges, x.size)
    out = np.empty(edges.size - 1, np.int32)
    _largest(x.view(np.int32), edges, out)
    return out.view(np.float32)


def block_squares(x: NDArray[np.float32], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give float64[m], the sum of squares of each block."""
    x = vector(x, np.float32, "x")
    edges = checked_blocks(edges, x.size)
    out = np.empty(edges.size - 1, np.float64)
    _squares(x, edges, out)
    return out


def round_blocks(
    x: NDArray[np.float32],
    edges: NDArray[np.int64],
    steps: NDArray[np.float32],
    half: int,
    words: NDArray[np.uint32] | None = None,
) -> NDArray[np.uint8]:
    """Give uint8[n]: `half` and the multiple of its block's step that a coordinate is rounded to, at most `half` away.

    Args:
        x: float32[n], finite.
        edges: int64[m + 1], rising from 0 to n.
        steps: float32[m], 0 or positive; 0 makes its block `half`.
        half: 1 to 127.
        words: uint32[n], random: round up with the probability of what rounding down cuts off; None for the nearest.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    x, steps = vector(x, np.float32, "x"), vector(steps, np.float32, "steps")
    edges = checked_blocks(edges, x.size, steps.size)
    if not 1 <= half <= 127:
        raise ValueError(f"half: expected 1 to 127, got {half}")
    codes = np.empty(x.size, np.uint8)
    if words is None:
        _round(x, edges, steps, half, codes)
        return codes
    words = vector(words, np.uint32, "words")
    if words.size != x.size:
        raise ValueError(f"words: expected {x.size}, got {words.size}")
    _round_at_random(x, edges, steps, half, words, codes)
    return codes
