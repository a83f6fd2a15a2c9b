"""Consensus merging beside its formula, and its votes by head."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Consensus, Context, Mean, Update
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, updates


def by_the_formula(x, weights, threshold, agree):
    """Wang et al., 2024, all clients at once."""
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    masks = np.abs(x) >= threshold * np.abs(mean - x)
    return mean * (masks.sum(0) >= agree)


def merged(rows, strategy):
    space = Space((Slot("a", (len(rows[0]),), "head"),))
    return strategy.merge([Update(torch.tensor(row)) for row in rows], Context(space)).tolist()


@pytest.mark.parametrize("clients", [4, 9, 128])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("agree", [1, 2, 4])
def test_masks_are_those_of_the_formula(clients, threshold, agree):
    cohort = updates(clients)
    x, weights = np.stack([u.delta.double().numpy() for u in cohort]), np.array([u.weight for u in cohort])
    found = Consensus(threshold, agree).merge(cohort, Context(SPACE)).numpy()
    assert np.allclose(found, by_the_formula(x, weights, threshold, agree), rtol=1e-6, atol=0)
    if clients == 9 and threshold == 3.0 and agree == 4:
        assert 0 < (found == 0).mean() < 1


def test_selfish_and_catastrophic_coordinates_go():
    rows = [[6.0, 6.0, 1.0], [6.0, 0.0, -1.0], [6.0, 0.0, 3.0]]
    assert merged(rows, Consensus(0.4, 1)) == [6.0, 2.0, 1.0]
    assert merged(rows, Consensus(0.4, 2)) == [6.0, 0.0, 1.0]
    assert merged(rows, Consensus(1.0, 3)) == [6.0, 0.0, 0.0]
    assert merged([[0.0, 3.0], [0.0, -3.0]], Consensus(0.4, 2)) == [0.0, 0.0]


def test_equality_is_a_vote():
    assert merged([[1.0], [3.0]], Consensus(1.0, 2)) == [2.0]
    assert merged([[1.0], [3.0]], Consensus(1.0 + 1e-9, 2)) == [0.0]


def test_a_client_has_one_vote_whatever_its_weight():
    space = Space((Slot("a", (1,), "head"),))
    one, other = Update(torch.tensor([4.0]), 2.0), Update(torch.tensor([0.0]), 1.0)
    half = Update(torch.tensor([4.0]), 1.0)
    assert Consensus().merge([one, other], Context(space)).tolist() == [0.0]
    assert Consensus().merge([half, half, other], Context(space)).tolist() == pytest.approx([8 / 3])
    almost = Update(torch.tensor([4.0]), 1e-300)
    assert Consensus().merge([one, other, almost], Context(space)).tolist() == pytest.approx([8 / 3])


def test_with_votes_for_the_asking_it_is_the_mean():
    cohort = updates(9)
    found = Consensus(1e-9, 9).merge(cohort, Context(SPACE))
    assert torch.equal(found, Mean().merge(cohort, Context(SPACE)))


def test_fewer_than_must_agree_are_refused():
    with pytest.raises(ValueError, match=r"Consensus\(threshold=0.4, agree=3\) merges at least 3 updates, got 2"):
        merged([[1.0], [1.0]], Consensus(0.4, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Consensus(0.0), r"threshold must lie in \(0, 1e30\), got 0.0"),
        (lambda: Consensus(float("nan")), r"threshold must lie in \(0, 1e30\), got nan"),
        (lambda: Consensus(0.4, 0), "agree must be at least 1, got 0"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
