"""Inner products of ternary vectors by counting bits."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import bits_set, kernel, writable
from fedpeft.kernels.turning import LANES, within


@kernel
def _count(plane: NDArray[np.uint64], edges: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    for s in range(out.size):
        start, stop = edges[s], edges[s + 1]
        count = np.uint64(0)
        for w in range(start // LANES, (stop + LANES - 1) // LANES):
            count += bits_set(plane[w] & within(start, stop, w * LANES))
        out[s] = count


@kernel
def _add_products(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None:
    n, words = mask.shape
    kept = np.empty(words, np.uint64)
    for s in range(edges.size - 1):
        start, stop = edges[s], edges[s + 1]
        first, last = start // LANES, (stop + LANES - 1) // LANES
        for i in range(n):
            below = negative[i, first:last]
            ours = kept[: below.size]
            for w in range(below.size):
                ours[w] = mask[i, first + w] & within(start, stop, (first + w) * LANES)
            for j in range(i + 1):
                other, others_below = mask[j, first:last], negative[j, first:last]
                shared, differing = np.uint64(0), np.uint64(0)
                for w in range(below.size):
                    both = ours[w] & other[w]
                    shared += bits_set(both)
                    differing += bits_set(both & (below[w] ^ others_below[w]))
                products[i, j] += scales[s, i] * scales[s, j] * np.float64(np.int64(shared) - 2 * np.int64(differing))


def plane_counts(plane: NDArray[np.uint64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bits of a plane are set from each edge to the next.

    >>> plane_counts(np.array([0b1011], np.uint64), np.array([0, 1, 1, 64])).tolist()
    [1, 0, 2]

    Raises:
        ValueError: the edges do not rise, or leave the plane.
    """
    _check_edges(edges, plane.size)
    out = np.empty(edges.size - 1, np.int64)
    _count(np.require(plane, np.uint64, ["C", "A", "W"]), edges, out)
    return out


def add_plane_products(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    edges: NDArray[np.int64],
    scales: NDArray[np.float64],
    products: NDArray[np.float64],
) -> None:
    """Add the inner products of ternary vectors to the lower triangle of `products` float64[n, n].

    Args:
        mask: uint64[n, w]; bit i & 63 of word i >> 6 says that coordinate i is kept.
        negative: the same for minus signs.
        edges: int64[p + 1], rising: where pieces begin and end.
        scales: float64[p, n]: of each piece and vector.
        products: where to.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    n, words = mask.shape
    _check_edges(edges, words)
    if negative.shape != mask.shape or scales.shape != (edges.size - 1, n) or products.shape != (n, n):
        raise ValueError(
            f"expected planes (n, w), scales ({edges.size - 1}, n) and products (n, n), "
            f"got {mask.shape}, {negative.shape}, {scales.shape} and {products.shape}"
        )
    writable(products.reshape(-1), np.float64, "products")
    _add_products(mask, negative, edges, scales, products)


def _check_edges(edges: NDArray[np.int64], words: int) -> None:
    if not edges.size or edges[0] < 0 or np.any(np.diff(edges) < 0) or edges[-1] > LANES * words:
        raise ValueError(f"edges: expected to rise from 0 to at most {LANES * words}, got {edges[:3]}...{edges[-1:]}")
