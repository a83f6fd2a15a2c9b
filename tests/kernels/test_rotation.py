"""Blocks that are rotated and quantised in the cache: the bits of the plain steps, one after the other."""

import numpy as np
import pytest

from fedpeft import kernels

DRAW = np.random.default_rng(0)
LEVELS = np.array([0.245, 0.756, 1.344, 2.152], np.float32)
BLOCKS = [((64, 64, 32), (64, 50, 0)), ((1,), (1,)), ((4096, 16), (4096, 3)), ((8, 4, 2, 1), (8, 4, 2, 1)), ((), ())]


def edges_of(sizes):
    return np.cumsum([0, *sizes])


def words_for(n):
    return DRAW.integers(0, 1 << 32, -(-n // 32), dtype=np.uint32)


@pytest.mark.parametrize("half", [1, 2, 4])
@pytest.mark.parametrize(("sizes", "held"), BLOCKS)
def test_it_is_scaled_turned_transformed_and_quantised(sizes, held, half):
    edges, starts, levels = edges_of(sizes), edges_of(held), LEVELS[:half]
    x, words = DRAW.standard_normal(sum(held)).astype(np.float32), words_for(sum(sizes))
    z = np.zeros(sum(sizes), np.float32)
    for k, n in enumerate(held):
        z[edges[k] : edges[k] + n] = x[starts[k] : starts[k + 1]] * np.float32(0.7)
    kernels.flip_signs(z, words)
    kernels.walsh_hadamard(z, edges)
    codes, sums = kernels.quantise_normal(z, edges, levels)
    found = kernels.rotate_and_quantise(x, starts, edges, words, 0.7, levels)
    assert found[0].tobytes() == codes.tobytes()
    assert found[1].tobytes() == sums.tobytes()


@pytest.mark.parametrize("half", [1, 2, 4])
@pytest.mark.parametrize(("sizes", "held"), BLOCKS)
def test_back_it_is_looked_up_scaled_transformed_and_turned(sizes, held, half):
    edges, starts = edges_of(sizes), edges_of(held)
    levels = np.concatenate([-LEVELS[:half][::-1], LEVELS[:half]])
    codes, words = DRAW.integers(0, 2 * half, sum(sizes)).astype(np.uint8), words_for(sum(sizes))
    scales = DRAW.uniform(0.1, 3, len(sizes)).astype(np.float32)
    z = levels[codes] * np.repeat(scales, sizes)
    kernels.walsh_hadamard(z, edges)
    kernels.flip_signs(z, words)
    expected = np.concatenate([z[edges[k] : edges[k] + n] for k, n in enumerate(held)] or [z])
    assert kernels.rotate_back(codes, scales, levels, starts, edges, words).tobytes() == expected.tobytes()


@pytest.mark.parametrize("half", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 4096])
def test_the_nearest_level_and_sums_over_a_block(n, half):
    levels = LEVELS[:half]
    z = DRAW.standard_normal(1 << (n - 1).bit_length()).astype(np.float32)
    codes, (square, inner, quantised) = kernels.quantise_normal(z, np.array([0, z.size]), levels)
    deviation = np.sqrt(np.square(z, dtype=np.float64).mean())
    nearest = np.abs(np.abs(z)[:, None] / deviation - levels).argmin(axis=1)
    assert np.array_equal(codes, np.where(z >= 0, half + nearest, half - 1 - nearest))
    level = levels.astype(np.float64)[nearest]
    assert square == pytest.approx(np.square(z, dtype=np.float64).sum(), rel=1e-12)
    assert inner == pytest.approx((level * np.abs(z)).sum(), rel=1e-12)
    assert quantised == pytest.approx(np.square(level).sum(), rel=1e-12)


def test_numbers_that_do_not_fit_are_refused():
    x, edges, words = np.ones(8, np.float32), np.array([0, 8]), np.zeros(1, np.uint32)
    for starts in ([0, 9], [1, 8], [0, 4, 8], [0, 7]):
        with pytest.raises(ValueError, match="starts: expected 2 that rise from 0 to 8"):
            kernels.rotate_and_quantise(x, np.array(starts), edges, words, 1.0, LEVELS)
    with pytest.raises(ValueError, match="words"):
        kernels.rotate_and_quantise(x, edges, edges, words[:0], 1.0, LEVELS)
    with pytest.raises(ValueError, match="expected 8 codes below 4 and 1 scales"):
        kernels.rotate_back(np.full(8, 4, np.uint8), np.ones(1, np.float32), LEVELS, edges, edges, words)
