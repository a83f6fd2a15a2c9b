"""The mean, beside numpy's and PEFT's."""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Fold, Mean, Update

SHAPES = {"layer.lora_A": (3, 17), "layer.lora_B": (29, 3), "head": (2, 5, 7), "bias": (11,)}
SPACE = Space(tuple(Slot(name, shape, "lora") for name, shape in SHAPES.items()))


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
