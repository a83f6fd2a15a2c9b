"""Ternary vectors as two bit planes: a mask over coordinates and dense signs over what the mask keeps."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels.jit import kernel, vector, writable

ONE32 = np.uint32(1)
SIGN32 = np.uint32(31)
MAGNITUDE = np.uint32(0x7FFFFFFF)


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
def _classify(
    x: NDArray[np.float32],
    bits: NDArray[np.uint32],
    start: int,
    stop: int,
    least: np.uint32,
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> int:
    """Set mask and sign bits of coordinates [start, stop); sums[0:8] gets |x| of the kept, sums[8:16] x^2 of all."""
    count = 0
    i = start
    while i < stop:
        if i & 7 == 0 and i + 8 <= stop:
            m = ONE32 ^ ONE32
            g = ONE32 ^ ONE32
            for lane in range(8):
                u = bits[i + lane]
                kept = np.uint32((u & MAGNITUDE) >= least)
                m |= kept << np.uint32(lane)
                g |= (kept & (u >> SIGN32)) << np.uint32(lane)
                value = np.float64(x[i + lane])
                sums[lane] += abs(value) * kept
                sums[8 + lane] += value * value
                count += kept
            mask[i >> 3] = np.uint8(m)
            negative[i >> 3] = np.uint8(g)
            i += 8
        else:
            u = bits[i]
            kept = np.uint32((u & MAGNITUDE) >= least)
            mask[i >> 3] |= np.uint8(kept << np.uint32(i & 7))
            negative[i >> 3] |= np.uint8((kept & (u >> SIGN32)) << np.uint32(i & 7))
            value = np.float64(x[i])
            sums[i & 7] += abs(value) * kept
            sums[8 + (i & 7)] += value * value
            count += kept
            i += 1
    return count


@kernel
def _squeeze_signs(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    ones: NDArray[np.uint8],
    squeeze: NDArray[np.uint8],
    signs: NDArray[np.uint8],
) -> None:
    """Move the sign bits of kept coordinates together; `signs` has one byte for every 8 kept, rounded up."""
    held = np.uint64(0)
    filled = np.uint64(0)
    written = 0
    for i in range(mask.size):
        m = np.uint64(mask[i])
        held |= np.uint64(squeeze[(m << np.uint64(8)) | np.uint64(negative[i])]) << filled
        filled += np.uint64(ones[m])
        if filled >= np.uint64(8):
            signs[written] = np.uint8(held & np.uint64(255))
            written += 1
            held >>= np.uint64(8)
            filled -= np.uint64(8)
    if filled > np.uint64(0):
        signs[written] = np.uint8(held)


@kernel
def _spread_signs(
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
        at = position >> np.uint64(3)
        pair = np.uint64(signs[at]) | (np.uint64(signs[at + np.uint64(1)]) << np.uint64(8))
        eight = (pair >> (position & np.uint64(7))) & np.uint64(255)
        negative[i] = spread[(m << np.uint64(8)) | eight]
        position += np.uint64(ones[m])


@kernel
def _write(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    start: int,
    stop: int,
    scale: np.uint32,
    out: NDArray[np.uint32],
) -> None:
    """Write the float bits of +scale, -scale or 0 over coordinates [start, stop)."""
    i = start
    while i < stop:
        m = np.uint32(mask[i >> 3])
        g = np.uint32(negative[i >> 3])
        if i & 7 == 0 and i + 8 <= stop:
            for lane in range(8):
                kept = (m >> np.uint32(lane)) & ONE32
                minus = (g >> np.uint32(lane)) & ONE32
                out[i + lane] = (kept * scale) ^ (minus << SIGN32)
            i += 8
        else:
            kept = (m >> np.uint32(i & 7)) & ONE32
            minus = (g >> np.uint32(i & 7)) & ONE32
            out[i] = (kept * scale) ^ (minus << SIGN32)
            i += 1


@kernel
def _add(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    start: int,
    stop: int,
    value: float,
    total: NDArray[np.float64],
) -> None:
    """Add +value or -value to the kept coordinates of [start, stop)."""
    for byte in range(start >> 3, (stop + 7) >> 3):
        m = np.uint32(mask[byte])
        g = np.uint32(negative[byte])
        if m == 0:
            continue
        for lane in range(max(start - 8 * byte, 0), min(stop - 8 * byte, 8)):
            kept = (m >> np.uint32(lane)) & ONE32
            minus = (g >> np.uint32(lane)) & ONE32
            if kept:
                total[8 * byte + lane] += -value if minus else value


@kernel
def _popcount(plane: NDArray[np.uint8], ones: NDArray[np.uint8]) -> int:
    count = 0
    for i in range(plane.size):
        count += ones[plane[i]]
    return count


@kernel
def _classify_slots(
    x: NDArray[np.float32],
    bits: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    least: NDArray[np.uint32],
    ones: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    kept: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    lanes = np.empty(16, np.float64)
    for j in range(least.size):
        lanes[:] = 0.0
        kept[j] = _classify(x, bits, bounds[j], bounds[j + 1], least[j], mask, negative, lanes)
        sums[j, 0] = lanes[:8].sum()
        sums[j, 1] = lanes[8:].sum()


@kernel
def _write_slots(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    scales: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    for j in range(scales.size):
        _write(mask, negative, bounds[j], bounds[j + 1], scales[j], out)


@kernel
def _add_slots(
    mask: NDArray[np.uint8],
    negative: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    values: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None:
    for j in range(values.size):
        _add(mask, negative, bounds[j], bounds[j + 1], values[j], total)


def popcount(plane: NDArray[np.uint8]) -> int:
    """Count the bits set in uint8[...]."""
    return int(_popcount(vector(plane, np.uint8, "plane"), ONES))


def _slots(
    bounds: NDArray[np.int64], values: NDArray[np.float32], name: str, n: int
) -> tuple[list[int], NDArray[np.float32]]:
    """Check that `bounds` cuts [0, n) into slots and that `values` has one entry for each."""
    edges: list[int] = bounds.tolist()
    if not edges or edges[0] != 0 or edges[-1] != n or any(a > b for a, b in zip(edges, edges[1:], strict=False)):
        raise ValueError(f"bounds: expected to rise from 0 to {n}, got {edges[:3]}...{edges[-1:]}")
    values = vector(values, np.float32, name)
    if values.size != len(edges) - 1:
        raise ValueError(f"{name}: expected one for each of {len(edges) - 1} slots, got {values.size}")
    return edges, values


def pack_ternary(
    x: NDArray[np.float32], bounds: NDArray[np.int64], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Keep the signs of coordinates with |x| >= threshold and x != 0, and measure what was kept.

    Args:
        x: float32[n]; slot j is `x[bounds[j]:bounds[j + 1]]`.
        bounds: int64[m + 1], rising from 0 to n.
        thresholds: float32[m], each >= 0.

    Returns:
        mask uint8[ceil(n / 8)] (bit i & 7 of byte i >> 3), signs uint8[ceil(kept / 8)] (1 = negative, in order
        of position), and for each slot: kept int64[m], sum of kept |x| float64[m], sum of all x^2 float64[m].
    """
    x = vector(x, np.float32, "x")
    edges, thresholds = _slots(bounds, thresholds, "thresholds", x.size)
    if not np.all(thresholds >= 0):
        raise ValueError("thresholds: expected numbers >= 0")
    mask, negative = np.zeros((2, (x.size + 7) // 8), np.uint8)
    kept = np.empty(thresholds.size, np.int64)
    sums = np.empty((thresholds.size, 2), np.float64)
    least = np.maximum(thresholds.view(np.uint32) & MAGNITUDE, 1)
    _classify_slots(x, x.view(np.uint32), np.array(edges), least, ONES, mask, negative, kept, sums)
    signs = np.empty((int(kept.sum()) + 7) // 8, np.uint8)
    _squeeze_signs(mask, negative, ONES, SQUEEZE, signs)
    return mask, signs, kept, sums[:, 0].copy(), sums[:, 1].copy()


def _negative_plane(mask: NDArray[np.uint8], signs: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Check both planes against each other and `n`, and give the signs one bit per coordinate."""
    if mask.size != (n + 7) // 8:
        raise PayloadError(Defect.SIZE, f"mask: expected {(n + 7) // 8} bytes, got {mask.size}")
    if n & 7 and mask[-1] >> (n & 7):
        raise PayloadError(Defect.PADDING, f"mask: expected zeros after bit {n}")
    kept = popcount(mask)
    if signs.size != (kept + 7) // 8:
        raise PayloadError(Defect.COUNT, f"signs: expected {(kept + 7) // 8} bytes for {kept} signs, got {signs.size}")
    if kept & 7 and signs[-1] >> (kept & 7):
        raise PayloadError(Defect.PADDING, f"signs: expected zeros after bit {kept}")
    padded = np.zeros(signs.size + 2, np.uint8)
    padded[: signs.size] = signs
    negative = np.empty(mask.size, np.uint8)
    _spread_signs(mask, padded, ONES, SPREAD, negative)
    return negative


def unpack_ternary(
    mask: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write +scale or -scale of its slot to each kept coordinate of `out` float32[n], and 0 to the others.

    Raises:
        PayloadError: the planes do not fit each other or `out`.
    """
    mask, signs = vector(mask, np.uint8, "mask"), vector(signs, np.uint8, "signs")
    edges, scales = _slots(bounds, scales, "scales", out.size)
    writable(out, np.float32, "out")
    negative = _negative_plane(mask, signs, out.size)
    _write_slots(mask, negative, np.array(edges), scales.view(np.uint32), out.view(np.uint32))


def add_ternary(
    mask: NDArray[np.uint8],
    signs: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    scales: NDArray[np.float32],
    weight: float,
    total: NDArray[np.float64],
) -> None:
    """Add weight * (what `unpack_ternary` writes) to `total` float64[n] without writing it.

    Raises:
        PayloadError: the planes do not fit each other or `total`.
    """
    mask, signs = vector(mask, np.uint8, "mask"), vector(signs, np.uint8, "signs")
    edges, scales = _slots(bounds, scales, "scales", total.size)
    writable(total, np.float64, "total")
    negative = _negative_plane(mask, signs, total.size)
    _add_slots(mask, negative, np.array(edges), scales.astype(np.float64) * float(weight), total)
