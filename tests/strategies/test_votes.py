"""Who is ahead does not depend on the unit of weights, nor on the order or the form in which votes are added."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.strategies import TIES, Fold, Majority, TernaryMedian, TernaryTrimmedMean, Update
from fedpeft.strategies.votes import lead
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import SPACE, context, merged, updates

ELECTIONS = [
    TIES(trim=trim, elect=elect, aggregate=aggregate)
    for trim in ("none", "slot")
    for elect in ("sum", "count")
    for aggregate in ("mean", "sum", "margin")
]
COUNTS = [Majority(), Majority(0.5), TernaryMedian(), TernaryTrimmedMean(0.0), TernaryTrimmedMean(0.2)]
every_vote = pytest.mark.parametrize("strategy", [*ELECTIONS, *COUNTS], ids=repr)
RATIOS = [
    (0.1, 0.2, 0.3),
    (0.2, 0.1, 0.3),
    (0.3, 0.6, 0.9),
    (0.7, 1.4, 2.1),
    (1e-30, 2e-30, 3e-30),
    (1 / 3, 2 / 3, 1.0),
]


def planes(update):
    codec = Ternary(density=0.6)
    return replace(update, sent=codec.planes(codec.encode(update.delta, SPACE, Sender()), SPACE, Sender()))


def tied(weights):
    """The first two against the third, seven times over."""
    x = updates(1)[0].delta
    return [Update(sent, w) for _ in range(7) for sent, w in zip((x, x, -x), weights, strict=True)]


@every_vote
@pytest.mark.parametrize("weights", RATIOS)
@without_type_checks()
def test_a_tie_makes_no_step_whatever_the_unit_of_weights(strategy, weights):
    dense = tied(weights)
    ternary = [planes(update) for update in dense]
    mixed = [one if i % 2 else other for i, (one, other) in enumerate(zip(dense, ternary, strict=True))]
    assert not merged(strategy, dense).any()
    assert not merged(strategy, ternary).any()
    if strategy in ELECTIONS[:6] or strategy in COUNTS:
        pairs = [replace(update, sent=sent) for update in mixed for sent in (update.delta, -update.delta)]
        assert not merged(strategy, pairs).any()


@every_vote
@without_type_checks()
def test_a_tie_of_a_thousand_streamed_or_in_a_tree_is_a_tie(strategy):
    draw, x = np.random.default_rng(0), updates(1)[0].delta
    weights = draw.exponential(size=500) ** 3
    for sent in (x, planes(Update(x)).sent):
        other = -x if sent is x else planes(Update(-x)).sent
        cohort = [Update(way, float(w)) for way in (sent, other) for w in draw.permutation(weights)]
        cohort = [cohort[i] for i in draw.permutation(1000)]
        root, streamed = Fold(strategy, context(strategy)), Fold(strategy, context(strategy))
        for update in cohort:
            streamed.accumulate(update)
        for begin in range(0, 1000, 90):
            branch = Fold(strategy, context(strategy))
            branch.accumulate(*cohort[begin : begin + 90])
            root.merge(branch)
        assert not any(found.any() for found in (streamed.finalize(), root.finalize(), merged(strategy, cohort)))


@pytest.mark.parametrize("strategy", [*ELECTIONS[3:6], *COUNTS[:3]], ids=repr)
@pytest.mark.parametrize("ahead", [1.0, -1.0])
def test_one_vote_of_a_thousand_million_decides(strategy, ahead):
    x = torch.ones(SPACE.numel)
    found = merged(strategy, [Update(x * ahead, 5e8 + 1), Update(-x * ahead, 5e8)])
    assert torch.equal(found.sign(), x * ahead)


def test_an_election_of_exact_sums_is_decided_by_float32s_last_bit():
    x = torch.ones(SPACE.numel)
    cohort = [Update(x, 3.0), Update(-torch.nextafter(x, torch.zeros(SPACE.numel)), 3.0)]
    assert torch.equal(merged(TIES(trim="none"), cohort), x)


def test_what_is_no_number_is_not_hidden():
    plus, minus = torch.tensor([math.nan, math.inf, 1.0]).double(), torch.tensor([1.0, 1.0, math.inf]).double()
    found = lead(plus, minus)
    assert math.isnan(found[0]) and found[1:].tolist() == [math.inf, -math.inf]
