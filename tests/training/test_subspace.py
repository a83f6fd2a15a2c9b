"""Directions at right angles, of length 1, the same for all of a run."""

import numpy as np
import pytest
import torch

from fedpeft.training.subspace import Subspace


def every(subspace):
    like = torch.zeros(subspace.numel)
    return torch.stack([subspace.along(np.ones(1), like, np.array([i])) for i in range(subspace.count)])


@pytest.mark.parametrize(("d", "k", "block"), [(1, 1, 4), (64, 64, 64), (1000, 256, 128), (4101, 64, 1 << 16)])
def test_directions_are_orthonormal(d, k, block):
    directions = every(Subspace(d, k, 5, block))
    assert torch.allclose(directions @ directions.T, torch.eye(k), atol=1e-5)


def test_a_direction_is_spread_evenly_over_its_block():
    direction = every(Subspace(4101, 64, 5))[3]
    assert set((direction.abs() * 64).unique().tolist()) == {0.0, 1.0}
    assert int((direction != 0).sum()) == 4096


def test_sums_and_products_are_those_of_the_directions():
    subspace, draw = Subspace(1000, 128, 5), np.random.default_rng(0)
    directions, x = every(subspace), torch.from_numpy(draw.standard_normal(1000, np.float32))
    y = draw.standard_normal(128, np.float32)
    assert np.allclose(subspace.products(x), (directions @ x).numpy(), atol=1e-5)
    assert torch.allclose(subspace.along(y, x), torch.from_numpy(y) @ directions, atol=1e-5)
    some = np.array([3, 50, 127])
    assert torch.allclose(subspace.along(y[some], x, some), torch.from_numpy(y[some]) @ directions[some], atol=1e-6)


def test_runs_have_their_own():
    one, same, other = (every(Subspace(1000, 16, seed)) for seed in (5, 5, 6))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((100, 0, 0), "count must be a power of two, got 0"),
        ((100, 3, 0), "count must be a power of two, got 3"),
        ((100, 128, 0), "count: 128 directions in a space of 100"),
        ((100, 4, 0, 6), "block must be a power of two, got 6"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Subspace(*settings)
