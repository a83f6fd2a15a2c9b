"""Median, trimmed mean and majority from counts, beside numpy's over the vectors themselves."""

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Majority, TernaryMedian, TernaryTrimmedMean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, merged, updates

several = pytest.mark.parametrize("clients", [1, 2, 5, 8, 31, 128])
SCALE = 0.375


def ternary(clients):
    """Vectors of one scale, of every proportion of signs."""
    draw = np.random.default_rng(clients)
    chance = draw.dirichlet((1, 1, 1), SPACE.numel)
    signs = (draw.random((clients, SPACE.numel, 1)) > np.cumsum(chance, 1)[None, :, :2]).sum(2) - 1
    return signs * SCALE


def cohort(x, weights=None):
    weights = np.ones(len(x)) if weights is None else weights
    return [Update(torch.from_numpy(row).float(), float(w)) for row, w in zip(x, weights, strict=True)]


@several
def test_the_median_is_numpys(clients):
    x = ternary(clients)
    assert np.array_equal(merged(TernaryMedian(), cohort(x)).numpy(), np.median(x, 0).astype(np.float32))


@several
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_the_trimmed_mean_is_numpys(clients, cut):
    if 2 * cut >= clients:
        cut = (clients - 1) // 2
    x = ternary(clients)
    expected = np.sort(x, 0)[cut : clients - cut].mean(0)
    found = merged(TernaryTrimmedMean(cut / clients), cohort(x))
    assert np.allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@several
def test_the_majority_is_the_sign_of_the_sum_of_signs(clients):
    x = ternary(clients)
    expected = np.sign(np.sign(x).sum(0))
    assert np.array_equal(merged(Majority(), cohort(x)).numpy(), (SCALE * expected).astype(np.float32))
    assert np.array_equal(merged(Majority(0.01), cohort(x)).numpy(), (0.01 * expected).astype(np.float32))


@pytest.mark.parametrize("strategy", [TernaryMedian(), TernaryTrimmedMean(0.25), Majority()], ids=repr)
def test_weights_are_so_many_clients(strategy):
    x, weights = ternary(8), np.arange(1, 9)
    apart = cohort(np.repeat(x, weights, axis=0))
    assert torch.allclose(merged(strategy, cohort(x, weights)), merged(strategy, apart), rtol=1e-6)


def test_between_mean_and_median_lies_the_trimmed_mean():
    x = ternary(31)
    assert np.allclose(merged(TernaryTrimmedMean(0.0), cohort(x)).numpy(), x.mean(0), rtol=1e-6, atol=1e-9)
    almost = merged(TernaryTrimmedMean(0.5 - 1e-9), cohort(x))
    assert torch.allclose(almost, merged(TernaryMedian(), cohort(x)), rtol=1e-5)


@pytest.mark.parametrize("strategy", [TernaryMedian(), TernaryTrimmedMean(0.4), Majority()], ids=repr)
@pytest.mark.parametrize("attack", [1e30, -1e-30])
def test_less_than_half_of_the_clients_turn_no_sign(strategy, attack):
    honest = np.sign(np.random.default_rng(0).standard_normal(SPACE.numel))
    rows = cohort(np.stack([honest] * 4 + [-honest * attack] * 3))
    assert torch.equal(merged(strategy, rows).sign(), torch.from_numpy(honest).float())


@pytest.mark.parametrize("threshold", ["slot", "global"])
def test_the_common_scale_is_the_weighted_mean_of_the_clients_scales(threshold):
    codec = Ternary(density=0.7, threshold=threshold)
    draw = np.random.default_rng(0)
    x = torch.from_numpy(np.abs(draw.standard_normal((3, SPACE.numel)))).float()
    sent = [codec.planes(codec.encode(row, SPACE, Sender()), SPACE, Sender()) for row in x]
    found = merged(Majority(), [Update(s, w) for s, w in zip(sent, (1.0, 2.0, 5.0), strict=True)])
    for name, tensor in SPACE.tensors(found).items():
        scales = [SPACE.view(s.dense(), name) for s in sent]
        those = [(float(s.max()), w) for s, w in zip(scales, (1, 2, 5), strict=True) if s.any()]
        if those:
            size = np.average([s for s, _ in those], weights=[w for _, w in those])
            assert torch.allclose(tensor[tensor != 0], torch.tensor(size, dtype=torch.float32), rtol=1e-6)


def test_a_float_delta_counts_by_its_signs_and_its_mean_magnitude():
    space = Space((Slot("a", (4,), "head"), Slot("b", (1, 2), "head"), Slot("c", (), "head"), Slot("d", (0,), "head")))
    rows = [[1.0, -3.0, 0.0, 2.0, 0.0, 0.0, 5.0], [4.0, -4.0, 4.0, 0.0, 1.0, -3.0, -1.0]]
    cohort = [Update(torch.tensor(row)) for row in rows]
    # The scales of a are 2 and 4; only the second client has one in b; in c they are 5 and 1.
    assert merged(TernaryTrimmedMean(0.0), cohort, space).tolist() == [3.0, -3.0, 1.5, 1.5, 1.0, -1.0, 0.0]
    assert merged(TernaryMedian(), cohort, space).tolist() == [3.0, -3.0, 1.5, 1.5, 1.0, -1.0, 0.0]
    assert merged(Majority(), cohort, space).tolist() == [3.0, -3.0, 3.0, 3.0, 2.0, -2.0, 0.0]


@pytest.mark.parametrize("strategy", [TernaryMedian(), TernaryTrimmedMean(0.4), Majority(), Majority(2.0)], ids=repr)
def test_zeros_make_no_step(strategy):
    assert not merged(strategy, [Update(torch.zeros(SPACE.numel))] * 3).any()
    assert torch.isfinite(strategy.merge(updates(5, "huge"), Context(SPACE))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TernaryTrimmedMean(0.5), r"fraction must lie in \[0, 0.5\), got 0.5"),
        (lambda: TernaryTrimmedMean(-0.1), r"fraction must lie in \[0, 0.5\), got -0.1"),
        (lambda: Majority(0.0), "scale must be positive and finite, or None, got 0.0"),
        (lambda: Majority(float("inf")), "scale must be positive and finite, or None, got inf"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
