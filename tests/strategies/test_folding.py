"""Sums over dense and ternary updates, by blocks, are what numpy makes of the deltas written out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft import kernels, strategies
from fedpeft.kernels.folding import BLOCK
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Fold, Mean, Update
from fedpeft.strategies.folding import Ballot, add_by_sign, add_weighted, gram, zeros
from fedpeft.strategies.planes import Trim, mean_magnitudes
from fedpeft.ternary import TernaryDelta

SHAPES = [(3, 5), (), (0,), (BLOCK + 77,), (64,), (9, 7)]
SPACE = Space(tuple(Slot(f"{i}", shape, "head") for i, shape in enumerate(SHAPES)))
KINDS = ["dense", "ternary", "mixed"]


def planes(draw, pieces):
    """A ternary delta with whole scales, some negative and some zero, cut elsewhere than the slots."""
    x = draw.integers(-1, 2, SPACE.numel).astype(np.float32)
    whole = np.array([0, x.size])
    mask, signs, *_ = kernels.pack_ternary(x, whole, np.zeros(1, np.float32))
    bounds = np.concatenate([[0], np.sort(draw.integers(0, x.size + 1, pieces - 1)), [x.size]])
    return TernaryDelta.of(mask, signs, bounds, draw.integers(-2, 4, pieces).astype(np.float32))


def cohort(clients, kind):
    draw = np.random.default_rng(clients)
    made = []
    for k in range(clients):
        dense = torch.from_numpy(np.round(2 * draw.standard_normal(SPACE.numel))).float()
        sent = dense if kind == "dense" or (kind == "mixed" and k % 3) else planes(draw, 1 + k % 4)
        made.append(Update(sent, float(draw.integers(1, 9))))
    return made


def written(updates):
    return np.stack([u.delta.double().numpy() for u in updates])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 4, 5, 9, 140])
def test_weighted_sums(kind, clients):
    updates = cohort(clients, kind)
    weights = [u.weight for u in updates]
    total = zeros(SPACE.numel).add_(3)
    add_weighted(total, updates, weights)
    assert np.array_equal(total.numpy(), 3 + weights @ written(updates))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 4, 5, 9, 140])
def test_a_mean_of_updates_in_memory_is_that_of_their_fold_to_the_bit(kind, clients, monkeypatch):
    monkeypatch.setattr(strategies.folding, "BLOCK", 1000)
    weights = np.random.default_rng(clients).uniform(0.1, 9, clients)
    updates = [replace(u, weight=float(w)) for u, w in zip(cohort(clients, kind), weights, strict=True)]
    fold = Fold(Mean(), Context(SPACE))
    for group in [[u] for u in updates] if kind == "dense" else [updates]:
        fold.accumulate(*group)
    assert torch.equal(Mean().merge(updates, Context(SPACE)), fold.finalize())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 4, 5, 9, 140])
@pytest.mark.parametrize("bounds", [None, SPACE.bounds, (0, SPACE.numel)])
def test_sums_by_sign(kind, clients, bounds):
    updates = cohort(clients, kind)
    values, votes = [u.weight for u in updates], [1.0 + i % 3 for i in range(clients)]
    trim = None if bounds is None else Trim(0.3, bounds)
    sums = torch.ones(4, SPACE.numel, dtype=torch.float64)
    add_by_sign(Ballot(*sums), updates, values, votes, trim)
    rows = [u.delta.numpy() for u in updates]
    x = np.stack([row if trim is None else trim.of_dense(row) for row in rows]).astype(np.float64)
    parts = values @ np.maximum(x, 0), values @ np.maximum(-x, 0), votes @ (x > 0), votes @ (x < 0)
    assert np.array_equal(sums.numpy(), 1 + np.array(parts))


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("bounds", [SPACE.bounds, (0, SPACE.numel)])
@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_a_trim_of_planes_is_that_of_the_delta_written_out(density, bounds, pieces):
    trim = Trim(density, bounds)
    for seed in range(5):
        delta = planes(np.random.default_rng(seed), pieces)
        left = trim.of_planes(delta).dense().numpy()
        assert np.array_equal(left, trim.of_dense(delta.dense().numpy()))
        for begin, end in pairwise(bounds):
            part = delta.dense().numpy()[begin:end]
            kept = np.count_nonzero(left[begin:end])
            assert kept >= min(np.count_nonzero(part), max(1, round(density * part.size)) if part.size else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 3, 8, 20])
def test_inner_products(kind, clients):
    updates = cohort(clients, kind)
    x = written(updates)
    assert np.array_equal(gram(updates, Context(SPACE)).numpy(), x @ x.T)


@pytest.mark.parametrize("strategy", [Mean(), TIES(), TIES(trim="global"), TIES(trim="none", weights="reference")])
def test_dense_updates_are_summed_to_the_bits_of_their_lifts(strategy):
    draw = np.random.default_rng(0)
    updates = [Update(torch.from_numpy(draw.standard_normal(SPACE.numel)).float(), float(w)) for w in draw.random(11)]
    fold = Fold(strategy, Context(SPACE))
    fold.accumulate(*updates)
    lifts = [strategy.lift(update, Context(SPACE)) for update in updates]
    for name, total in fold.total.items():
        one_by_one = torch.zeros_like(total)
        for lift in lifts:
            one_by_one += lift[name]
        assert torch.equal(total, one_by_one)


@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_mean_magnitudes_of_slots(pieces):
    delta = planes(np.random.default_rng(pieces), pieces)
    parts = [np.abs(delta.dense().numpy()[begin:end]) for begin, end in pairwise(SPACE.bounds)]
    expected = [part.sum() / max(1, np.count_nonzero(part)) for part in parts]
    assert mean_magnitudes(delta, SPACE.bounds).tolist() == pytest.approx(expected)


def test_a_rule_of_ones_own_that_is_a_mean_is_folded_as_it_says():
    class Doubled(Mean):
        def finalize(self, total, ctx):
            return 2 * super().finalize(total, ctx)

    updates = cohort(5, "dense")
    assert torch.equal(Doubled().merge(updates, Context(SPACE)), 2 * Mean().merge(updates, Context(SPACE)))
