"""PCB-Merging beside its formula written out densely, and where the authors' code overflows or divides by zero."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import PCB, Context, Fold, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, updates

LARGE = Space((Slot("m.lora_A", (4, 3001), "lora_A"), Slot("m.lora_B", (1999, 4), "lora_B")))


def normalised(x):
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    return (x - low) / (high - low)


def clamped(x, low, high):
    d = x.shape[1]
    ordered = np.sort(x, axis=1)
    return np.clip(x, ordered[:, [int(d * low)]], ordered[:, [int(d * (1 - high) - 1)]])


def by_the_formula(x, n, density, weights=None):
    """Du et al., 2024: all clients at once, with exp(n x^2) as it stands."""
    weights = np.ones(len(x)) if weights is None else weights
    size = clamped(np.abs(x), 1e-4, 1e-4)
    total = len(x) * (weights[:, None] * x).sum(0) / weights.sum()
    scores = np.exp(n * normalised(size) ** 2) * np.tanh(x * total)
    share = weights[:, None] * normalised(clamped(scores, 1 - density, 0))
    least = 1e-12 * weights.mean()
    return (share * np.sign(x) * size).sum(0) / np.maximum(share.sum(0), least)


def merged(x, strategy=PCB(), weights=None):  # noqa: B008
    space = Space((Slot("a", (x.shape[1],), "head"),))
    weights = np.ones(len(x)) if weights is None else weights
    cohort = [Update(torch.from_numpy(row).float(), float(w)) for row, w in zip(x, weights, strict=True)]
    return strategy.merge(cohort, Context(space)).numpy()


@pytest.mark.parametrize("clients", [1, 2, 9, 40, 128])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.5, 1.0])
def test_shares_are_those_of_the_formula(clients, density):
    draw = np.random.default_rng(clients)
    x = np.float64(np.float32(draw.standard_normal((clients, 500)) * draw.uniform(0.1, 3, 500)))
    expected = by_the_formula(x, clients, density)
    assert np.allclose(merged(x, PCB(density)), expected, rtol=1e-5, atol=1e-6)
    assert np.allclose(merged(x, PCB(density, 1.2)), 1.2 * expected, rtol=1e-5, atol=1e-6)
    weights = draw.uniform(1, 50, clients)
    assert np.allclose(merged(x, PCB(density), weights), by_the_formula(x, clients, density, weights), atol=1e-6)


def test_the_tails_of_a_large_adapter_are_clamped_at_both_ends():
    x = np.stack([u.delta.double().numpy() for u in updates(5, space=LARGE)])
    cohort = [Update(torch.from_numpy(row).float()) for row in x]
    found = PCB(0.3).merge(cohort, Context(LARGE)).numpy()
    assert np.allclose(found, by_the_formula(x, 5, 0.3), atol=1e-6)
    assert int(LARGE.numel * 1e-4) > 0 and np.abs(found).max() < np.abs(x).max()


@pytest.mark.parametrize("clients", [88, 89, 128, 2000])
def test_the_exponent_does_not_overflow_where_the_published_one_does(clients):
    draw = np.random.default_rng(0)
    x = np.float32(draw.standard_normal((clients, 60)) + draw.standard_normal(60))
    with np.errstate(over="ignore"):
        published = np.exp(np.float32(clients) * np.float32(1.0))
    assert np.isinf(published) == (clients >= 89)
    found = merged(x)
    assert np.isfinite(found).all() and found.any()
    if clients <= 128:
        assert np.allclose(found, by_the_formula(np.float64(x), clients, 0.1), rtol=1e-5, atol=1e-6)


def test_rows_of_one_size_and_rows_of_nothing_have_no_preference():
    equal = np.array([[2.0, 2.0, 2.0, 2.0]] * 3)
    assert np.array_equal(merged(equal), equal[0])
    assert not merged(np.zeros((3, 4))).any()
    lonely = np.concatenate([equal, np.zeros((5, 4))])
    assert np.array_equal(merged(lonely), equal[0])
    assert np.array_equal(merged(np.array([[7.0]])), [7.0])
    assert np.array_equal(merged(np.array([[7.0], [-9.0]])), [-1.0])


def test_a_ternary_update_has_its_best_coordinates_tied():
    draw = np.random.default_rng(3)
    x = np.sign(draw.standard_normal((6, 400))) * (draw.uniform(size=(6, 400)) < 0.2) * 0.01
    found = merged(x)
    assert np.isfinite(found).all() and found.any()
    assert set(np.abs(found[found != 0]).tolist()) == {float(np.float32(0.01))}


def test_what_agrees_with_the_others_wins_over_what_is_large():
    x = np.zeros((3, 20))
    x[:, 0] = 1.0
    x[:, 1:3] = [[5.0, 5.0], [-5.0, -5.0], [-5.0, -5.0]]
    x[:, 3:] = 0.01
    found = merged(x, PCB(0.15))
    assert found[:4].tolist() == [1.0, -5.0, -5.0, 0.0]


def test_the_second_pass_is_told_the_sum():
    fold = Fold(PCB(), Context(SPACE))
    cohort = updates(6)
    fold.accumulate(*cohort)
    told = fold.finalize().told
    mean = sum(u.delta.double() * u.weight for u in cohort) / sum(u.weight for u in cohort)
    assert torch.allclose(told["sum"], 6 * mean) and float(told["count"]) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PCB(0.0), r"density must lie in \(0, 1\], got 0.0"),
        (lambda: PCB(2.0), r"density must lie in \(0, 1\], got 2.0"),
        (lambda: PCB(float("nan")), r"density must lie in \(0, 1\], got nan"),
        (lambda: PCB(0.1, 0.0), r"scale must lie in \(0, 1e30\), got 0.0"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
