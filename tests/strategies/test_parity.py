"""The same numbers as numpy, as PEFT and as the formulas written out.

PEFT divides by the number of agreeing tensors and multiplies by weights before that, so its weights are no shares:
parity holds where all weights are 1. It gives a tied election to the positive side; here a tie makes no step.
"""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Fold, Mean, SignElection, Update

SHAPES = {"layer.lora_A": (3, 17), "layer.lora_B": (29, 3), "head": (2, 5, 7), "bias": (11,)}
SPACE = Space(tuple(Slot(name, shape, "lora") for name, shape in SHAPES.items()))
METHOD = {"sum": "total", "count": "frequency"}


def adapters(clients):
    draw = np.random.default_rng(clients)
    return [
        {n: torch.from_numpy(draw.standard_normal(s)).float() * 3.0**i for i, (n, s) in enumerate(SHAPES.items())}
        for _ in range(clients)
    ]


def merged(strategy, tensors, weights):
    fold = Fold(strategy, Context(SPACE))
    for one, weight in zip(tensors, weights, strict=True):
        fold.accumulate(Update(SPACE.flatten(one), float(weight)))
    return SPACE.tensors(fold.finalize())


@pytest.mark.parametrize("clients", [1, 2, 5, 20])
def test_mean_is_numpys_average(clients):
    tensors, weights = adapters(clients), np.random.default_rng(1).uniform(1, 100, clients)
    for name, tensor in merged(Mean(), tensors, weights).items():
        expected = np.average([t[name].double().numpy() for t in tensors], axis=0, weights=weights)
        assert np.array_equal(tensor.numpy(), expected.astype(np.float32)) or np.allclose(tensor, expected, rtol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 5, 20])
def test_mean_is_pefts_task_arithmetic_of_the_shares(clients):
    tensors, weights = adapters(clients), np.random.default_rng(1).uniform(1, 100, clients)
    shares = torch.from_numpy(weights / weights.sum())
    for name, tensor in merged(Mean(), tensors, weights).items():
        expected = merge_utils.task_arithmetic([t[name].double() for t in tensors], shares)
        assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clients", [1, 3, 5, 8])
@pytest.mark.parametrize("elect", ["sum", "count"])
def test_sign_election_is_pefts_without_weights(clients, elect):
    tensors = adapters(clients)
    for name, tensor in merged(SignElection(elect), tensors, [1.0] * clients).items():
        stacked = torch.stack([t[name].double() for t in tensors])
        majority = merge_utils.calculate_majority_sign_mask(stacked, METHOD[elect])
        expected = merge_utils.disjoint_merge(stacked, majority)
        tied = (stacked if elect == "sum" else stacked.sign()).sum(0) == 0
        assert torch.allclose(tensor.double()[~tied], expected[~tied], rtol=1e-6, atol=0)
        assert not tensor[tied].any()
        assert bool(tied.any()) == (elect == "count" and clients == 8)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("elect", ["sum", "count"])
def test_a_trim_before_and_the_election_are_pefts_ties(density, elect):
    tensors = adapters(6)
    trimmed = [{n: merge_utils.prune(x, density, method="magnitude") for n, x in t.items()} for t in tensors]
    for name, tensor in merged(SignElection(elect), trimmed, [1.0] * 6).items():
        doubles = [t[name].double() for t in tensors]
        expected = merge_utils.ties(doubles, torch.ones(6), density, METHOD[elect])
        left = torch.stack([t[name].double() for t in trimmed])
        tied = (left if elect == "sum" else left.sign()).sum(0) == 0
        assert torch.allclose(tensor.double()[~tied], expected[~tied], rtol=1e-6, atol=0)
        assert not tensor[tied].any() and not tied.all()


def test_pefts_weights_are_no_shares():
    tensors, shares = adapters(4), torch.full((4,), 0.25, dtype=torch.float64)
    ours = merged(SignElection(), tensors, shares.tolist())["bias"].double()
    stacked = torch.stack([t["bias"].double() for t in tensors])
    majority = merge_utils.calculate_majority_sign_mask(stacked)
    theirs = merge_utils.disjoint_merge(stacked * shares[:, None], majority)
    assert torch.allclose(ours, 4 * theirs, rtol=1e-6)


def by_the_formula(x, n, elect, average):
    """Yadav et al., 2023, section 3, with weights in election and merge, coordinate by coordinate."""
    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        votes = n * x[:, j] if elect == "sum" else n * np.sign(x[:, j])
        gamma = np.sign(votes.sum())
        agree = np.sign(x[:, j]) == gamma
        if gamma and agree.any():
            over = n[agree].sum() if average == "agreeing" else n.sum()
            out[j] = (n[agree] * x[agree, j]).sum() / over
    return out


@pytest.mark.parametrize("average", ["agreeing", "all"])
@pytest.mark.parametrize("elect", ["sum", "count"])
@pytest.mark.parametrize("clients", [1, 2, 4, 9])
def test_weighted_election_is_the_formula(elect, average, clients):
    draw = np.random.default_rng(clients)
    x = np.round(draw.standard_normal((clients, SPACE.numel)) * 3)
    n = draw.integers(1, 5, clients).astype(float)
    fold = Fold(SignElection(elect, average), Context(SPACE))
    for row, weight in zip(x, n, strict=True):
        fold.accumulate(Update(torch.from_numpy(row).float(), weight))
    expected = by_the_formula(x, n, elect, average)
    assert np.array_equal(fold.finalize().numpy(), expected.astype(np.float32))
    if clients > 1 and elect == "sum":
        assert ((n[:, None] * x).sum(0) == 0).any()


def test_on_ternary_updates_of_one_scale_the_margin_is_in_the_mean_over_all_only():
    x = np.sign(np.random.default_rng(0).standard_normal((5, SPACE.numel))) * 0.5
    tensors = [SPACE.tensors(torch.from_numpy(row).float()) for row in x]
    agreeing, over_all = (
        SPACE.flatten(merged(SignElection("sum", average), tensors, [1.0] * 5)) for average in ("agreeing", "all")
    )
    assert set(agreeing.tolist()) == {-0.5, 0.5}
    assert set(over_all.abs().tolist()) == {float(np.float32(0.5 * k / 5)) for k in (3, 4, 5)}
