"""Compiling every kernel ahead of its first use."""

import numpy as np

from fedpeft.kernels import (
    hadamard,
    jit,
    logarithm,
    normal,
    outer,
    philox,
    planes,
    rademacher,
    rans,
    rice,
    select,
    strata,
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
    parameter, gaps = rice.encode(mask, x.size)
    rice.size_bits(mask, parameter)
    rice.decode(gaps, parameter, x.size, planes.popcount(mask))
    blocks, bits = np.array([0, 8]), np.zeros(1, np.uint32)
    hadamard.flip_signs(x[:8].copy(), bits)
    hadamard.walsh_hadamard(x[:8].copy(), blocks)
    rows = strata.stratified(np.zeros(2, np.uint32), 8)
    hadamard.spread_hadamard(hadamard.sample_hadamard(x[:8], blocks, bits, rows, ones), blocks, bits, rows, ones)
    normal.quantise_normal(x[:8], blocks, ones)
    rademacher.add_signed(rademacher.signed_sums(x[:8], bits), bits, x[:8].copy())
    outer.add_outer(x[:2].reshape(2, 1), x[:4].reshape(1, 4), x[:8].copy())
    logarithm.log_codes(x[:8])
    philox.philox_words(0, 0, 0, 0, 0, 0, 4)
