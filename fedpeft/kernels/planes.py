"""Loops over bit planes: a mask over coordinates, and signs either one per coordinate or dense over the kept."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.jit import bits_set, kernel, trailing_zeros, vector, words

MAGNITUDE = np.uint32(0x7FFFFFFF)
SIGN = np.uint32(31)
ONE, THREE, SEVEN, EIGHT, BYTE = np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(8), np.uint64(255)
FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
LANES = 64


def _bit_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Bits set in a byte; a byte's bits under a mask moved together (squeeze[mask, byte]), and back (spread)."""
    byte = np.arange(256, dtype=np.uint8)
    ones = np.zeros(256, np.uint8)
    squeeze, spread = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    for i in range(8):
        kept = byte >> i & 1
        squeeze |= ((byte[None, :] >> i & kept[:, None]) << ones[:, None]).astype(np.uint8)
        spread |= ((byte[None, :] >> ones[:, None] & kept[:, None]) << i).astype(np.uint8)
        ones += kept
    return ones, squeeze.reshape(-1), spread.reshape(-1)


ONES, SQUEEZE, SPREAD = _bit_tables()


@kernel
def _classify_block(
    bits: NDArray[np.uint32], x: NDArray[np.float32], at: np.uint64, least: np.uint32, lanes: NDArray[np.float64]
) -> tuple[np.uint64, np.uint64]:
    """Give mask and sign bits of 64 coordinates; lanes[0:64] gets |x| of the kept, lanes[64:128] x^2 of all.

    Its loop of 64 is compiled to vector instructions; a lane for each position fixes the order of the sums.
    """
    mask = np.uint64(0)
    negative = np.uint64(0)
    for lane in range(LANES):
        i = at + np.uint64(lane)
        u = bits[i]
        kept = np.uint64((u & MAGNITUDE) >= least)
        mask |= kept << np.uint64(lane)
        negative |= (kept & np.uint64(u >> SIGN)) << np.uint64(lane)
        value = np.float64(x[i])
        lanes[lane] += abs(value) if (u & MAGNITUDE) >= least else 0.0
        lanes[LANES + lane] += value * value
    return mask, negative


@kernel
def classify(
    x: NDArray[np.float32],
    bounds: NDArray[np.int64],
    least: NDArray[np.uint32],
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    kept: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Set the bits of every slot; sums[0] gets its sum of kept |x|, sums[1] its sum of all x^2.

    A block of 64 that two slots share is copied out with zeros around, since zeros are never kept.
    """
    bits = x.view(np.uint32)
    edge = np.empty(LANES, np.float32)
    edge_bits = edge.view(np.uint32)
    lanes = np.empty(2 * LANES, np.float64)
    for j in range(least.size):
        lanes[:] = 0.0
        count = np.uint64(0)
        start, stop = bounds[j], bounds[j + 1]
        for w in range(start >> 6, (stop + 63) >> 6):
            at = w << 6
            if start <= at and at + LANES <= stop:
                m, g = _classify_block(bits, x, np.uint64(at), least[j], lanes)
            else:
                edge[:] = 0.0
                for i in range(max(start, at), min(stop, at + LANES)):
                    edge[i - at] = x[i]
                m, g = _classify_block(edge_bits, edge, np.uint64(0), least[j], lanes)
            mask[w] |= m
            negative[w] |= g
            count += bits_set(m)
        kept[j] = count
        sums[0, j] = lanes[:LANES].sum()
        sums[1, j] = lanes[LANES:].sum()


@kernel
def squeeze_signs(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    ones: NDArray[np.uint8],
    squeeze: NDArray[np.uint8],
    signs: NDArray[np.uint8],
) -> None:
    """Move the sign bits of kept coordinates together; `signs` has one byte to spare."""
    held = np.uint64(0)
    filled = np.uint64(0)
    written = np.uint64(0)
    for i in range(mask.size):
        m = np.uint64(mask[i])
        held |= np.uint64(squeeze[(m << EIGHT) | np.uint64(negative[i])]) << filled
        filled += np.uint64(ones[m])
        signs[written] = np.uint8(held & BYTE)
        full = filled & EIGHT
        written += full >> THREE
        held >>= full
        filled &= SEVEN
    signs[written] = np.uint8(held)


@kernel
def spread_signs(
    mask: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    ones: NDArray[np.uint8],
    spread: NDArray[np.uint8],
    negative: NDArray[np.uint8],
) -> None:
    """Undo `_squeeze_signs`; `signs` has two bytes to spare."""
    position = np.uint64(0)
    for i in range(mask.size):
        m = np.uint64(mask[i])
        at = position >> THREE
        pair = np.uint64(signs[at]) | (np.uint64(signs[at + np.uint64(1)]) << EIGHT)
        eight = (pair >> (position & SEVEN)) & BYTE
        negative[i] = spread[(m << EIGHT) | eight]
        position += np.uint64(ones[m])


@kernel
def _write_block(
    mask: np.uint64, negative: np.uint64, scale: np.uint32, at: np.uint64, out: NDArray[np.uint32]
) -> None:
    """Write the float bits of +scale, -scale or 0 to 64 coordinates."""
    for lane in range(LANES):
        kept = np.uint32((mask >> np.uint64(lane)) & ONE)
        minus = np.uint32((negative >> np.uint64(lane)) & ONE)
        out[at + np.uint64(lane)] = (kept * scale) ^ (minus << SIGN)


@kernel
def write(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    scales: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """Write every slot; a block of 64 that two slots share is written once for each and copied in part."""
    edge = np.empty(LANES, np.uint32)
    for j in range(scales.size):
        start, stop = bounds[j], bounds[j + 1]
        for w in range(start >> 6, (stop + 63) >> 6):
            at = w << 6
            if start <= at and at + LANES <= stop:
                _write_block(mask[w], negative[w], scales[j], np.uint64(at), out)
            else:
                _write_block(mask[w], negative[w], scales[j], np.uint64(0), edge)
                for i in range(max(start, at), min(stop, at + LANES)):
                    out[i] = edge[i - at]


@kernel
def _add_block(mask: np.uint64, negative: np.uint64, value: float, at: np.uint64, total: NDArray[np.float64]) -> None:
    """Add +value, -value or 0 to 64 coordinates."""
    for lane in range(LANES):
        kept = (mask >> np.uint64(lane)) & ONE
        minus = (negative >> np.uint64(lane)) & ONE
        total[at + np.uint64(lane)] += value * np.float64(np.int64(kept) - np.int64(minus << ONE))


@kernel
def add(
    mask: NDArray[np.uint64],
    negative: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    values: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    """Add every slot: 64 at once where they are whole and hold enough, else bit by bit."""
    for j in range(values.size):
        start, stop = bounds[j], bounds[j + 1]
        for w in range(start >> 6, (stop + 63) >> 6):
            at = w << 6
            m, g = mask[w], negative[w]
            if start > at:
                m &= FULL << np.uint64(start - at)
            if stop < at + LANES:
                m &= FULL >> np.uint64(at + LANES - stop)
            elif start <= at and bits_set(m) > ONE:
                _add_block(m, g, values[j], np.uint64(at), total)
                continue
            while m != 0:
                lane = trailing_zeros(m)
                minus = (g >> lane) & ONE
                total[np.uint64(at) + lane] += -values[j] if minus else values[j]
                m &= m - ONE


@kernel
def _popcount(plane: NDArray[np.uint64]) -> int:
    count = np.uint64(0)
    for i in range(plane.size):
        count += bits_set(plane[i])
    return count  # type: ignore[return-value]


def popcount(plane: NDArray[np.uint8]) -> int:
    """Count the bits set in uint8[...]."""
    return int(_popcount(words(vector(plane, np.uint8, "plane"), 0)))
