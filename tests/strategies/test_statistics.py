"""Which numbers a statistic is, and which it cannot be."""

import json

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies.statistics import STATISTICS, check_statistic, statistic_space
from tests.strategies.examples import SPACE, statistics


def good(name, seed=0):
    return statistics(np.random.default_rng(seed), SPACE)[name]


def spread(vector):
    """Class means that lie further apart than the inputs themselves."""
    moments = vector.view(12, 6).clone()
    low, high = (int(i) for i in moments[6:, -1].argsort()[-2:])
    moments[6 + low, 0] += 100.0
    moments[6 + high, 0] -= 100.0
    return moments.reshape(-1)


@pytest.mark.parametrize("name", STATISTICS)
def test_what_is_measured_passes_and_its_space_is_no_other(name):
    spaces = [SPACE, *(statistic_space(each, SPACE) for each in STATISTICS)]
    assert len({space.fingerprint for space in spaces}) == 4
    for seed in range(20):
        check_statistic(name, SPACE, good(name, seed))
    check_statistic(name, SPACE, torch.zeros_like(good(name)))


def test_the_fisher_has_the_slots_a_gram_is_of_each_b_and_a_head_has_its_inputs_and_classes():
    fisher, gram, head = (statistic_space(name, SPACE) for name in STATISTICS)
    assert [(s.name, s.shape) for s in fisher.slots] == [(s.name, s.shape) for s in SPACE.slots]
    assert [(s.name, s.shape) for s in gram.slots] == [(f"m.{i}.lora_B.weight", (3, 3)) for i in (0, 1)]
    assert [(s.name, s.shape) for s in head.slots] == [("m.score.weight", (5 + 1 + 6, 5 + 1))]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fisher", lambda v: v[:-1], r"'fisher': expected shape \(106,\), got \(105,\)"),
        ("gram", lambda v: torch.cat([v, v]), r"'gram': expected shape \(18,\)"),
        ("fisher", lambda v: v.index_fill(0, torch.tensor(5), -1e-30), "'fisher': expected at least 0 everywhere"),
        (
            "head",
            lambda v: v.index_fill(0, torch.tensor([41]), 1e30),
            "expected classes whose sums add up|shares|eigen",
        ),
        ("head", lambda v: 2 * v, "'head' of 'm.score.weight': expected shares of classes that add up to 1"),
        (
            "head",
            lambda v: torch.cat([v[:36] * torch.eye(6).reshape(-1), v[36:]]),
            "expected classes whose sums add up",
        ),
        ("head", lambda v: spread(v), "'head' of 'm.score.weight': expected eigenvalues of at least 0"),
        ("head", lambda v: -v, "'head' of 'm.score.weight': expected "),
        ("head", lambda v: v + torch.arange(72.0) / 9, "'head' of 'm.score.weight': expected a symmetric matrix"),
        ("gram", lambda v: -v, "'gram' of 'm.0.lora_B.weight': expected "),
        ("gram", lambda v: v + 0.01 * torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0, 0] * 2), "expected a symmetric matrix"),
        ("gram", lambda v: v - 5 * torch.eye(3).reshape(-1).repeat(2), "expected "),
        ("gram", lambda v: torch.tensor([0.0, 1, 0, 1, 0, 0, 0, 0, 0] * 2), "expected eigenvalues of at least 0"),
        ("gram", lambda v: torch.tensor([1.0, 2, 0, 2, 1, 0, 0, 0, 0] * 2), "expected eigenvalues of at least 0"),
    ],
)
def test_what_no_statistic_can_be_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        check_statistic(name, SPACE, change(good(name)))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("rank", [1, 2, 8, 64])
def test_a_gram_of_low_rank_passes_for_all_its_rounding(scale, rank):
    space = Space((Slot("b", (3, 64), "lora_B"),))
    for seed in range(5):
        z = np.random.default_rng(seed).standard_normal((rank, 64))
        check_statistic("gram", space, torch.from_numpy(scale * (z.T @ z)).float().reshape(-1))


def test_there_are_no_others_and_not_everywhere():
    with pytest.raises(ValueError, match="there is no statistic 'hessian'; expected one of fisher, gram"):
        statistic_space("hessian", SPACE)
    with pytest.raises(ValueError, match="'gram' is of the B of linear layers' LoRA, and this adapter has none"):
        statistic_space("gram", Space((Slot("score", (3, 4), "head"),)))
    dora = Space(SPACE.slots, json.dumps({"use_dora": True}))
    with pytest.raises(ValueError, match="cannot be measured with use_dora"):
        statistic_space("gram", dora)
    assert statistic_space("fisher", dora).numel == SPACE.numel
