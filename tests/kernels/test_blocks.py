"""Blocks against numpy, and steps for a rate against the entropy of what comes out."""

from itertools import pairwise

import numpy as np
import pytest

from fedpeft import kernels
from fedpeft.kernels import blocks, rate

RNG = np.random.default_rng(0)
X = RNG.standard_normal(1000).astype(np.float32)
EDGES = np.array([0, 0, 1, 4, 68, 132, 131 + 500, 1000])
SPANS = list(pairwise(EDGES))


def entropy(codes):
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum())


def test_largest_and_squares():
    largest, squares = blocks.block_largest(X, EDGES), blocks.block_squares(X, EDGES)
    assert np.array_equal(largest, [np.abs(X[a:b]).max(initial=0) for a, b in SPANS])
    assert np.allclose(squares, [np.square(X[a:b], dtype=np.float64).sum() for a, b in SPANS], rtol=1e-12)


def test_edges_stay_inside_slots():
    assert blocks.block_edges((0, 0, 5, 5, 12), 4).tolist() == [0, 4, 5, 9, 12]
    assert blocks.block_edges((0, 0), 4).tolist() == [0]


@pytest.mark.parametrize("half", [1, 7, 127])
def test_rounding_to_multiples(half):
    steps = (blocks.block_largest(X, EDGES) / half).astype(np.float32)
    steps[3] = 0
    codes = blocks.round_blocks(X, EDGES, steps, half)
    for (a, b), step in zip(SPANS, steps, strict=True):
        exact = np.rint(X[a:b] / step) if step else 0.0
        assert np.array_equal(codes[a:b], np.clip(exact, -half, half) + half + np.zeros(b - a))
    words = RNG.integers(0, 1 << 32, X.size, np.uint32)
    words[:500] = np.uint32(0xFFFFFFFF)
    codes = blocks.round_blocks(X, EDGES, steps, half, words)
    for (a, b), step in zip(SPANS, steps, strict=True):
        exact = np.floor((X[a:b] / step).astype(np.float64) + words[a:b] * 2.0**-32) if step else 0.0
        assert np.array_equal(codes[a:b], np.clip(exact, -half, half) + half + np.zeros(b - a))


def test_codes_are_looked_up():
    codes = RNG.integers(0, 5, X.size, np.uint8)
    points, scales = np.array([-2, -1, 0, 1, 2], np.float32), RNG.random(len(SPANS)).astype(np.float32)
    assert np.array_equal(
        kernels.look_up(codes, EDGES, points, scales), points[codes] * np.repeat(scales, np.diff(EDGES))
    )
    with pytest.raises(ValueError, match="codes: expected below 4, got 4"):
        kernels.look_up(codes, EDGES, points[:4], scales)


@pytest.mark.parametrize("edges", [[0, 999], [1, 1000], [0, 600, 500, 1000], []])
def test_edges_that_do_not_fit(edges):
    with pytest.raises(ValueError, match="edges: expected to rise from 0 to 1000"):
        blocks.block_largest(X, np.array(edges, np.int64))


def test_numbers_that_do_not_fit_the_blocks():
    with pytest.raises(ValueError, match="expected one step for each of 7 blocks, got 6"):
        blocks.round_blocks(X, EDGES, np.ones(6, np.float32), 7)
    with pytest.raises(ValueError, match="half: expected 1 to 127, got 128"):
        blocks.round_blocks(X, EDGES, np.ones(7, np.float32), 128)
    with pytest.raises(ValueError, match="words: expected 1000, got 3"):
        blocks.round_blocks(X, EDGES, np.ones(7, np.float32), 7, np.zeros(3, np.uint32))
    with pytest.raises(ValueError, match="bits, half: expected a positive rate and 2 to 127 multiples, got 0, 7"):
        kernels.quantise_to_rate(X, EDGES, np.ones(7), 0, 7)


@pytest.mark.parametrize("bits", [0.1, 0.7, 2.0, 3.3, 5.0])
def test_the_histogram_tells_the_entropy_of_what_is_rounded(bits):
    x = RNG.laplace(size=200_000).astype(np.float32)
    codes, step, counts, totals = kernels.quantise_to_rate(x, np.array([0, x.size]), np.array([1.5]), bits, 127)
    assert entropy(codes) == pytest.approx(bits, rel=2e-3)
    relative = np.abs(x) / (1.5 * step)
    levels = np.minimum(np.floor(relative + 1 - rate.ZONE), 127)
    near_a_border = np.abs(relative + 1 - rate.ZONE - np.rint(relative + 1 - rate.ZONE)) < 1e-6
    assert np.array_equal((127 + np.sign(x) * levels)[~near_a_border], codes[~near_a_border])
    assert np.array_equal(counts[0], np.bincount(np.abs(codes.astype(int) - 127), minlength=128))
    assert np.allclose(totals[0], np.bincount(np.abs(codes.astype(int) - 127), relative, minlength=128))


def test_blocks_are_measured_in_their_units():
    x = np.concatenate([X, X * np.float32(2**-10)])
    codes, _, counts, _ = kernels.quantise_to_rate(x, np.array([0, 1000, 2000]), np.array([1.0, 2.0**-10]), 2.0, 63)
    assert np.array_equal(codes[:1000], codes[1000:]) and np.array_equal(counts[0], counts[1])


def test_nothing_needs_no_step():
    codes, step, _, _ = kernels.quantise_to_rate(np.zeros(9, np.float32), np.array([0, 9]), np.zeros(1), 2.0, 7)
    assert step == 1.0 and np.array_equal(codes, np.full(9, 7))
    codes, _, _, _ = kernels.quantise_to_rate(np.empty(0, np.float32), np.array([0, 0]), np.zeros(1), 2.0, 7)
    assert codes.size == 0
