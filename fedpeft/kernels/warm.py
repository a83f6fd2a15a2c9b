"""Compiling every kernel ahead of its first use."""

import numpy as np

from fedpeft.kernels import jit, philox, planes, rans, rice, select, tables, ternary


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
    philox.philox_words(0, 0, 0, 0, 0, 0, 4)
