"""Rounding to multiples of a step with a wider interval around zero, to symbols of a given entropy."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import kernel, vector
from fedpeft.kernels.rate import NEAR, ZONE, step_for_rate

TRIES, WIDER, OVER = 4, 1.01, 1.005


@kernel
def _quantise(
    x: NDArray[np.float32],
    edges: NDArray[np.int64],
    inverse: NDArray[np.float64],
    half: int,
    codes: NDArray[np.uint8],
    counts: NDArray[np.int64],
    totals: NDArray[np.float64],
) -> None:
    """Count and sum into two tables in turn, so that a run of one level does not wait for its own stores."""
    size = half + 1
    seen, summed = np.zeros(2 * size, np.int64), np.zeros(2 * size, np.float64)
    relative, level = np.empty(NEAR, np.float64), np.empty(NEAR, np.int32)
    for j in range(inverse.size):
        seen[:], summed[:] = 0, 0.0
        for begin in range(edges[j], edges[j + 1], NEAR):
            block, code = x[begin : min(begin + NEAR, edges[j + 1])], codes[begin : min(begin + NEAR, edges[j + 1])]
            for i in range(block.size):
                relative[i] = abs(np.float64(block[i])) * inverse[j]
                level[i] = np.int32(min(relative[i] + (1 - ZONE), np.float64(half)))
                code[i] = np.uint8(np.int32(half) + (-level[i] if block[i] < 0 else level[i]))
            for i in range(block.size):
                at = np.int64(i & 1) * size + level[i]
                seen[at] += 1
                summed[at] += relative[i]
        for k in range(size):
            counts[j, k] = seen[k] + seen[size + k]
            totals[j, k] = summed[k] + summed[size + k]


def _rate(counts: NDArray[np.int64]) -> float:
    used = counts[counts > 0]
    n = int(used.sum())
    return float(n - counts[0] - used @ np.log2(used / n)) / max(1, n)


def quantise_to_rate(
    x: NDArray[np.float32], edges: NDArray[np.int64], units: NDArray[np.float64], bits: float, half: int
) -> tuple[NDArray[np.uint8], float, NDArray[np.int64], NDArray[np.float64]]:
    """Round |x| / (step unit) to 0 below 0.55, else to k where it lies in k - 0.45 to k + 0.55, but to `half` at most.

    The step is that of `step_for_rate`; a few more, each 1 % larger, are tried where the numbers are so few different
    ones that their histogram did not tell.

    Args:
        x: float32[n], finite.
        edges: int64[m + 1], rising from 0 to n.
        units: float64[m], 0 where a block is all zeros.
        bits: entropy of the codes for each number, positive.
        half: 2 to 127.

    Returns:
        codes uint8[n], half + k or half - k; the step; for each block and k how many codes have it, int64[m, half + 1];
        and the sums of their |x| / (step unit), float64[m, half + 1].

    Raises:
        ValueError: the numbers do not fit each other.
    """
    if not (bits > 0 and 2 <= half <= 127):
        raise ValueError(f"bits, half: expected a positive rate and 2 to 127 multiples, got {bits}, {half}")
    step, top = step_for_rate(x, edges, units, bits, half)
    x, edges = vector(x, np.float32, "x"), vector(edges, np.int64, "edges")
    codes = np.empty(x.size, np.uint8)
    counts, totals = np.empty((units.size, half + 1), np.int64), np.empty((units.size, half + 1), np.float64)
    for _ in range(TRIES):
        inverse = np.divide(1.0, step * units, out=np.zeros(units.size), where=units > 0)
        _quantise(x, edges, inverse, half, codes, counts, totals)
        if _rate(counts.sum(axis=0)) <= OVER * bits or step == top:
            break
        step = min(step * WIDER, top)
    return codes, step, counts, totals
