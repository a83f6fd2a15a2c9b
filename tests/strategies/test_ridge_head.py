"""A head solved for is the head of the data in one place, however it is spread."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Krum, Mean, RidgeHead, Scaled, Update, by_slot
from tests.codecs.examples import without_type_checks

WIDTH, CLASSES = 7, 4
SPACE = Space(
    (
        Slot("m.lora_A.weight", (2, 3), "lora_A"),
        Slot("m.score.bias", (CLASSES,), "head"),
        Slot("m.score.weight", (CLASSES, WIDTH), "head"),
    )
)
START = torch.linspace(-1, 1, SPACE.numel)
DRAW = np.random.default_rng(0)
X, Y = DRAW.standard_normal((90, WIDTH)), DRAW.integers(CLASSES, size=90)


def update(rows, draw):
    u = np.concatenate([X[rows], np.ones((len(rows), 1))], 1)
    sums = np.concatenate([u.T @ u, np.eye(CLASSES)[Y[rows]].T @ u]) / len(rows)
    delta = torch.from_numpy(draw.standard_normal(SPACE.numel)).float()
    return Update(delta, float(len(rows)), {"head": torch.from_numpy(sums).float().reshape(-1)})


def merged(strategy, parts, number=0):
    cohort = [update(rows, np.random.default_rng(i)) for i, rows in enumerate(parts)]
    return SPACE.tensors(START + strategy.merge(cohort, Context(SPACE, START, round=number)))


SPREADS = {
    "one place": [np.arange(90)],
    "by turns": [np.arange(90)[i::5] for i in range(5)],
    "a class each": [np.flatnonzero(c == Y) for c in range(CLASSES)],
    "one has little": [np.arange(3), np.arange(3, 90)],
}


@pytest.mark.parametrize("spread", SPREADS, ids=str)
@pytest.mark.parametrize("ridge", [1e-4, 0.3])
def test_the_head_is_the_regression_of_all_examples(spread, ridge):
    u = np.concatenate([X, np.ones((90, 1))], 1)
    pull = ridge * np.trace(u.T @ u) / (WIDTH + 1)
    expected = 5.0 * np.linalg.solve(u.T @ u + pull * np.eye(WIDTH + 1), u.T @ np.eye(CLASSES)[Y])
    found = merged(RidgeHead(Mean(), ridge=ridge, scale=5.0), SPREADS[spread])
    assert np.allclose(found["m.score.weight"].T, expected[:-1], atol=1e-4)
    assert np.allclose(found["m.score.bias"], expected[-1], atol=1e-4)


@pytest.mark.parametrize("inside", [Mean(), TIES(trim="none"), Krum(0), by_slot({"lora_A": TIES()}, default=Mean())])
def test_all_else_is_the_strategy_s_inside_and_so_is_everything_in_other_rounds(inside):
    parts = SPREADS["by turns"]
    alone = merged(inside, parts)
    assert torch.equal(merged(RidgeHead(inside), parts)["m.lora_A.weight"], alone["m.lora_A.weight"])
    now, later = (merged(RidgeHead(inside, every=4), parts, number) for number in (8, 9))
    assert not torch.equal(now["m.score.weight"], alone["m.score.weight"])
    assert all(torch.equal(tensor, alone[name]) for name, tensor in later.items())


def test_it_asks_in_its_rounds_alone():
    strategy = Scaled(RidgeHead(Mean(), every=3), 1.0)
    assert strategy.needs == {"head"} and strategy.settles and strategy.anchored
    assert [bool(strategy.asks(number)) for number in range(1, 7)] == [False, False, True] * 2
    assert [strategy.trains(number) for number in range(1, 7)] == [True, True, False] * 2
    with pytest.raises(ValueError, match="expected an update with the statistic 'head'"):
        strategy.merge([Update(START)], Context(SPACE, START, round=3))
    strategy.merge([Update(START)], Context(SPACE, START, round=4))


def test_a_class_that_nobody_has_gets_nothing_and_no_data_no_error():
    rows = np.flatnonzero(Y != 2)
    assert not merged(RidgeHead(Mean()), [rows])["m.score.weight"][2].any()
    silent = Update(START, 1.0, {"head": torch.zeros((WIDTH + 1 + CLASSES) * (WIDTH + 1))})
    found = SPACE.tensors(START + RidgeHead(Mean()).merge([silent], Context(SPACE, START)))
    assert not found["m.score.weight"].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RidgeHead(Mean(), 1), "every must be at least 2, got 1"),
        (lambda: RidgeHead(Mean(), ridge=0.0), "ridge must be positive and finite, got 0.0"),
        (lambda: RidgeHead(Mean(), scale=float("inf")), "scale must be positive and finite, got inf"),
        (lambda: RidgeHead("Mean()"), "strategy must be a strategy, got 'Mean"),
    ],
)
@without_type_checks()
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
