"""Compiling every kernel ahead of its first use."""

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels import (
    blocks,
    bracket,
    codebook,
    context,
    cosine,
    deadzone,
    drawing,
    folding,
    gram,
    gram_schmidt,
    hadamard,
    jit,
    kept,
    largest,
    levels,
    logarithm,
    normal,
    outer,
    packing,
    philox,
    planes,
    rademacher,
    ranks,
    rans,
    rice,
    rotation,
    select,
    strata,
    subsets,
    tables,
    ternary,
)


def is_warm() -> bool:
    """Whether `warm_up` would find every kernel compiled, in memory or on disk; cheap to ask."""
    return all(jit.is_compiled(compiled) for compiled in jit.KERNELS)


def warm_up() -> None:
    """Compile every kernel, or load it from disk, by running each once on a few numbers."""
    x = np.array([3, 0, -1, 2, 0, 0, 0, 0, -5], np.float32)
    bounds, ones = np.array([0, x.size]), np.ones(1, np.float32)
    select.all_finite(x)
    mask, signs, _, _, _ = ternary.pack_ternary(x, bounds, np.array([select.magnitude_threshold(x, 2)]))
    ternary.unpack_ternary(mask, signs, bounds, ones, x)
    ternary.add_ternary(mask, signs, bounds, ones, 1.0, np.zeros(x.size))
    freq = tables.normalise(rans.histogram(mask))
    rans.decode(rans.encode(mask, freq), freq, mask.size)
    packing.unpack_symbols(packing.pack_symbols(mask, 8), 8, mask.size)
    parameter, gaps = rice.encode(mask, x.size)
    rice.size_bits(mask, parameter)
    rice.decode(gaps, parameter, x.size, planes.popcount(mask))
    grid = np.array([[0, x.size, 1, 1, 1, 0]])
    context.decode(context.encode(mask, signs, x.size, grid, 0.5), x.size, grid, 0.5)
    blocks, bits = np.array([0, 8]), np.zeros(1, np.uint32)
    hadamard.flip_signs(x[:8].copy(), bits)
    hadamard.walsh_hadamard(x[:8].copy(), blocks)
    rows = strata.stratified(np.zeros(2, np.uint32), 8)
    hadamard.spread_hadamard(hadamard.sample_hadamard(x[:8], blocks, bits, rows, ones), blocks, bits, rows, ones)
    normal.quantise_normal(x[:8], blocks, ones)
    codes, _ = rotation.rotate_and_quantise(x[:8], blocks, blocks, bits, 1.0, ones)
    rotation.rotate_back(codes, ones, x[:2], blocks, blocks, bits)
    rademacher.add_signed(rademacher.signed_sums(x[:8], bits), bits, x[:8].copy())
    gram_schmidt.orthonormal(np.ones((1, 9)), np.ones((1, 9)))
    outer.add_outer(x[:2].reshape(2, 1), x[:4].reshape(1, 4), x[:8].copy())
    logarithm.log_codes(x[:8])
    philox.philox_words(0, 0, 0, 0, 0, 0, 4)
    _warm_up_sparse(x, bounds)
    _warm_up_sums(x)
    _warm_up_steps(x, bounds, ones)


def _warm_up_sparse(x: NDArray[np.float32], bounds: NDArray[np.int64]) -> None:
    mask, values, counts = largest.keep_largest(x, bounds, np.array([2]))
    levels.quantise_kept(values, counts, np.ones(1), 2)
    kept.kept_by_slot(mask, bounds)
    kept.spread_kept(mask, values, x.size)
    words, place = np.zeros(x.size, np.uint32), np.zeros(1, np.int64)
    drawing.put_strata(drawing.take_strata(x, words[:3]), words[:3], x)
    ranks.keep_by_rank(x, 3, 0.5, 0.5, words, np.zeros(1, np.uint64), 0)
    for back in (False, True):
        cosine.cosine_blocks(x, place, place, 4, np.ones(4, np.float32), np.ones(16, np.float32), x, back=back)


def _warm_up_steps(x: NDArray[np.float32], bounds: NDArray[np.int64], ones: NDArray[np.float32]) -> None:
    blocks.block_largest(x, bounds)
    units = np.sqrt(blocks.block_squares(x, bounds))
    codebook.look_up(blocks.round_blocks(x, bounds, ones, 7), bounds, np.ones(15, np.float32), ones)
    blocks.round_blocks(x, bounds, ones, 7, np.zeros(x.size, np.uint32))
    codebook.nearest_levels(x, bounds, np.array([-1, 0, 1], np.float32), ones)
    deadzone.quantise_to_rate(x, bounds, units, 1.0, 7)


def _warm_up_sums(x: NDArray[np.float32]) -> None:
    bracket.kth_by_sample(np.ones(bracket.SAMPLE, np.float32).view(np.uint32), 1)
    folding.add_scaled([x], [1.0], np.zeros(x.size))
    folding.add_votes(folding.voters([x], [0.0], [1.0], [1.0])[0], slice(None), np.zeros(4 * folding.BLOCK))
    rows, edges, units = np.zeros((8, subsets.WORDS), np.uint64), np.array([0, x.size]), np.ones((1, 8))
    total = np.zeros(x.size)
    subsets.add_plane_values(rows, rows, edges, units, units[0], total)
    subsets.add_plane_votes(rows, rows, edges, units, units[0], units[0], (total,) * 4)
    gram.add_plane_products(rows, rows, edges, units, np.zeros((8, 8)))
    gram.plane_counts(rows[0], edges)
