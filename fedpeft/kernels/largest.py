"""Exactly the k largest magnitudes of each of many chunks: which they are, and what they are."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import bits_set, kernel, trailing_zeros, vector
from fedpeft.kernels.planes import LANES, MAGNITUDE, ONE
from fedpeft.kernels.select import kth_magnitude

NEAR = 1 << 14  # magnitudes that stay in the nearest cache while they are counted once for each bit


@kernel
def _kth_near(magnitude: NDArray[np.int32], k: int) -> np.int32:
    """Give a magnitude that at least k reach: the k-th largest, or a lower one that no other lies above.

    It is built from its highest bit down; each count is compiled to vector instructions and has no branch, which for
    a few thousand numbers is faster than a partition or a histogram.
    """
    every = np.int32(0)
    for i in range(magnitude.size):
        every |= magnitude[i]
    bit = np.int32(1 << 30)
    while bit > every:
        bit >>= 1
    least = np.int32(0)
    while bit > 0:
        trial = least | bit
        count = np.int32(0)
        for i in range(magnitude.size):
            count += np.int32(magnitude[i] >= trial)
        if count >= k:
            least = trial
            if count == k:
                break
        bit >>= 1
    return least


@kernel
def _thresholds(
    bits: NDArray[np.uint32], edges: NDArray[np.int64], ks: NDArray[np.int64], least: NDArray[np.uint32]
) -> None:
    """Find for each chunk the magnitude from which on at least its k are kept; zeros never are."""
    near = np.empty(NEAR, np.int32)
    for c in range(ks.size):
        begin, n = edges[c], edges[c + 1] - edges[c]
        found = np.uint32(1)
        if ks[c] == 0:
            found = MAGNITUDE  # which no finite number reaches
        elif n > NEAR:
            found = max(found, kth_magnitude(bits[begin : begin + n], ks[c]))
        else:
            for i in range(n):
                near[i] = np.int32(bits[begin + i] & MAGNITUDE)
            found = max(found, np.uint32(_kth_near(near[:n], ks[c])))
        least[c] = found


@kernel
def _drop_ties(bits: NDArray[np.uint32], words: NDArray[np.uint64], least: np.uint32, excess: int) -> None:
    """Clear the last `excess` of the set bits whose magnitude is `least`."""
    for i in range(bits.size - 1, -1, -1):
        if excess == 0:
            break
        if bits[i] & MAGNITUDE == least:
            words[i >> 6] ^= ONE << np.uint64(i & 63)
            excess -= 1


@kernel
def _keep(
    bits: NDArray[np.uint32],
    edges: NDArray[np.int64],
    ks: NDArray[np.int64],
    least: NDArray[np.uint32],
    mask: NDArray[np.uint64],
    values: NDArray[np.uint32],
    kept: NDArray[np.int64],
) -> int:
    """Set the mask of every chunk and move what it keeps together; of equal magnitudes the first are kept."""
    words = np.empty((np.diff(edges).max() + 63) >> 6, np.uint64)
    written = 0
    for c in range(ks.size):
        begin, n = edges[c], edges[c + 1] - edges[c]
        count = 0
        for w in range((n + 63) >> 6):
            found = np.uint64(0)
            at, lanes = begin + (w << 6), min(LANES, n - (w << 6))
            if lanes == LANES:
                for lane in range(LANES):
                    found |= np.uint64((bits[at + lane] & MAGNITUDE) >= least[c]) << np.uint64(lane)
            else:
                for lane in range(lanes):
                    found |= np.uint64((bits[at + lane] & MAGNITUDE) >= least[c]) << np.uint64(lane)
            words[w] = found
            count += np.int64(bits_set(found))  # type: ignore[assignment]
        if count > ks[c]:
            _drop_ties(bits[begin : begin + n], words, least[c], count - ks[c])
        kept[c] = min(count, ks[c])
        for w in range((n + 63) >> 6):
            found = words[w]
            while found != 0:
                i = np.uint64(begin + (w << 6)) + trailing_zeros(found)
                mask[i >> np.uint64(6)] |= ONE << (i & np.uint64(63))
                values[written] = bits[i]
                written += 1
                found &= found - ONE
    return written


def keep_largest(
    x: NDArray[np.float32], edges: NDArray[np.int64], ks: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Keep the ks[c] largest magnitudes of each chunk, fewer where it has fewer that are not zero.

    Args:
        x: float32[n], finite; chunk c is `x[edges[c]:edges[c + 1]]`.
        edges: int64[m + 1], rising from 0 to n.
        ks: int64[m]; 0 <= ks[c] <= size of the chunk.

    Returns:
        mask uint8[ceil(n / 8)] (bit i & 7 of byte i >> 3), the kept values float32[...] in order of position, and how
        many each chunk kept, int64[m].

    Raises:
        ValueError: edges or ks are not such.
    """
    bits = vector(x, np.float32, "x").view(np.uint32)
    edges, ks = vector(edges, np.int64, "edges"), vector(ks, np.int64, "ks")
    sizes = np.diff(edges)
    if not edges.size or edges[0] != 0 or edges[-1] != bits.size or np.any(sizes < 0):
        raise ValueError(f"edges: expected to rise from 0 to {bits.size}, got {edges[:3]}...{edges[-1:]}")
    if ks.size != sizes.size or np.any(ks < 0) or np.any(ks > sizes):
        raise ValueError(f"ks: expected for each of {sizes.size} chunks 0 up to its size, got {ks[:3]}...")
    mask = np.zeros((bits.size + 63) // 64, np.uint64)
    values, kept = np.empty(int(ks.sum()), np.uint32), np.zeros(ks.size, np.int64)
    if not ks.size:
        return mask.view(np.uint8), values.view(np.float32), kept
    least = np.empty(ks.size, np.uint32)
    _thresholds(bits, edges, ks, least)
    count = _keep(bits, edges, ks, least, mask, values, kept)
    return mask.view(np.uint8)[: (bits.size + 7) // 8], values[:count].view(np.float32), kept
