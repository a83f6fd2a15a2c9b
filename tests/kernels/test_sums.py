"""Sums of many vectors, dense and ternary, agree with numpy to the bit where they are whole numbers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft import kernels
from fedpeft.kernels import bracket, folding, select, subsets

SIZES = [0, 1, 15, 64, 1000, folding.BLOCK]


def whole(draw, *shape):
    return np.round(draw.standard_normal(shape) * 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("clients", [1, 2, 3, 4, 9])
def test_scaled_vectors_are_added_in_order(size, clients):
    draw = np.random.default_rng(size + clients)
    x = draw.standard_normal((clients, size)).astype(np.float32)
    weights, start = draw.standard_normal(clients), draw.standard_normal(size)
    total, expected = start.copy(), start
    kernels.add_scaled(list(x), weights.tolist(), total)
    for row, weight in zip(x, weights, strict=True):
        expected = expected + weight * row.astype(np.float64)
    assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("clients", [1, 2, 4, 7])
def test_votes_are_added_in_order(size, clients):
    draw = np.random.default_rng(size + clients)
    x = draw.standard_normal((clients, size)).astype(np.float32)
    x[draw.random(x.shape) < 0.2] = 0
    least, values, votes = draw.choice([0, 0.5, 1], clients), draw.random(clients), draw.random(clients)
    start = draw.standard_normal((4, folding.BLOCK))
    sums, expected = start.copy(), start.copy()
    for four in kernels.voters(list(x), least.tolist(), values.tolist(), votes.tolist()):
        kernels.add_votes(four, slice(0, size), sums.reshape(-1))
    for row, low, value, vote in zip(x.astype(np.float64), least, values, votes, strict=True):
        plus, minus = (row > 0) & (row >= low), (row < 0) & (-row >= low)
        for held, new in zip(
            expected, (value * row * plus, -value * row * minus, vote * plus, vote * minus), strict=True
        ):
            held[:size] += new
    assert sums.tobytes() == expected.tobytes()


def test_the_smallest_numbers_vote_and_zeros_do_not():
    x = np.array([0, -0.0, 1e-45, -1e-45], np.float32)
    sums = np.zeros((4, folding.BLOCK))
    (four,) = kernels.voters([x], [0.0], [1.0], [1.0])
    kernels.add_votes(four, slice(None), sums.reshape(-1))
    assert sums[2:, :4].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("vectors", [[np.zeros(4, np.float32)], [np.zeros(3)], [np.zeros((3, 1), np.float32)]])
def test_vectors_that_do_not_fit(vectors):
    with pytest.raises(ValueError, match=r"vectors: expected each of float32\(3,\)"):
        kernels.add_scaled(vectors, [1.0] * len(vectors), np.zeros(3))


def test_votes_are_of_a_block_at_most():
    x = np.zeros(folding.BLOCK + 1, np.float32)
    (four,) = kernels.voters([x], [0.0], [1.0], [1.0])
    for where, sums in ((slice(None), 4 * folding.BLOCK), (slice(0, 3), 12)):
        with pytest.raises(ValueError, match=r"sums: expected 4 times \d+ numbers for at most"):
            kernels.add_votes(four, where, np.zeros(sums))


def ternary(clients, size, pieces, seed):
    """Planes with bits past the end too, pieces that may be empty or of scale 0, and the same in full."""
    draw = np.random.default_rng(seed)
    mask, other = (draw.integers(0, 2**64, (clients, subsets.WORDS), np.uint64) for _ in range(2))
    negative = mask & other
    edges = np.concatenate([[0], np.sort(draw.integers(0, size + 1, pieces - 1)), [size]])
    scales = draw.integers(-3, 4, (pieces, clients)).astype(np.float64)
    bits = [
        np.unpackbits(p.view(np.uint8), axis=1, bitorder="little")[:, :size].astype(float) for p in (mask, negative)
    ]
    return mask, negative, edges, scales, (bits[0] - 2 * bits[1]) * np.repeat(scales, np.diff(edges), axis=0).T


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 511, 512, 513, 5000, 64 * subsets.WORDS])
@pytest.mark.parametrize("pieces", [1, 2, 30])
@pytest.mark.parametrize("clients", [8, 24])
def test_planes_are_added_as_what_they_stand_for(size, pieces, clients):
    mask, negative, edges, scales, x = ternary(clients, size, pieces, size + pieces)
    draw = np.random.default_rng(clients)
    values, votes = draw.integers(1, 9, clients).astype(float), draw.integers(1, 9, clients).astype(float)
    start = whole(draw, 4, size)
    sums = start.copy()
    kernels.add_plane_votes(mask, negative, edges, scales, values, votes, tuple(sums))
    parts = values @ np.maximum(x, 0), values @ np.maximum(-x, 0), votes @ (x > 0), votes @ (x < 0)
    assert np.array_equal(sums, start + np.array(parts))
    total = start[0].copy()
    kernels.add_plane_values(mask, negative, edges, scales, values, total)
    assert np.array_equal(total, start[0] + values @ x)


@pytest.mark.parametrize("size", [0, 1, 64, 100, 5000])
@pytest.mark.parametrize("clients", [1, 5, 16])
def test_products_and_counts_of_planes(size, clients):
    mask, negative, edges, scales, x = ternary(clients, size, 7, size)
    products = np.zeros((clients, clients))
    kernels.add_plane_products(mask, negative, edges, scales, products)
    assert np.array_equal(products, np.tril(x @ x.T))
    bits = np.unpackbits(mask[0].view(np.uint8), bitorder="little")
    assert kernels.plane_counts(mask[0], edges).tolist() == [bits[a:b].sum() for a, b in pairwise(edges)]


@pytest.mark.parametrize("edges", [[0, 65], [-1, 4], [0, 5, 4], []])
def test_edges_that_do_not_rise_within_the_planes(edges):
    with pytest.raises(ValueError, match="edges: expected to rise from 0 to at most 64"):
        kernels.plane_counts(np.zeros(1, np.uint64), np.array(edges, np.int64))


@pytest.mark.parametrize("edges", [[0, 11], [-1, 4], [0, 5, 4]])
def test_edges_that_leave_the_sum(edges):
    rows, n = np.zeros((8, subsets.WORDS), np.uint64), len(edges) - 1
    with pytest.raises(ValueError, match="edges: expected to rise from 0 to at most 10"):
        kernels.add_plane_values(rows, rows, np.array(edges), np.ones((n, 8)), np.ones(8), np.zeros(10))


def test_planes_that_do_not_fit():
    rows, edges, ones = np.zeros((7, subsets.WORDS), np.uint64), np.array([0, 10]), np.ones(8)
    with pytest.raises(ValueError, match="planes: expected"):
        kernels.add_plane_values(rows, rows, edges, np.ones((1, 7)), ones, np.zeros(10))
    rows = np.zeros((8, subsets.WORDS), np.uint64)
    with pytest.raises(ValueError, match=r"scales: expected \(1, 8\), got \(2, 8\)"):
        kernels.add_plane_values(rows, rows, edges, np.ones((2, 8)), ones, np.zeros(10))
    with pytest.raises(ValueError, match="expected planes"):
        kernels.add_plane_products(rows, rows, edges, np.ones((1, 8)), np.zeros((7, 8)))


@given(st.integers(0, 2**32), st.sampled_from(["normal", "ties", "sorted", "sparse", "spikes"]), st.data())
def test_a_sample_leads_to_the_exact_threshold_or_to_none(seed, kind, data):
    draw = np.random.default_rng(seed)
    n = data.draw(st.integers(bracket.SAMPLE, 3 * select.MANY))
    x = draw.standard_normal(n).astype(np.float32)
    match kind:
        case "ties":
            x = np.sign(x)
        case "sorted":
            x = np.sort(x)
        case "sparse":
            x[draw.random(n) < 0.9] = 0
        case "spikes":
            x[:: n // bracket.SAMPLE] *= 1e6
    k = data.draw(st.integers(1, n))
    exact = np.sort(np.abs(x))[n - k]
    found, bits = bracket.kth_by_sample(x.view(np.uint32), k)
    assert not found or np.uint32(bits).view(np.float32) == exact
    assert kernels.magnitude_threshold(x, k) == exact
    assert found or kind != "normal" or not 50 < k < n - 50
