"""TIES and means beside mergekit's own code, on layers that are not square."""

import os

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Mean, Scaled, Update
from simulations import by_mergekit

pytestmark = pytest.mark.skipif(by_mergekit.VARIABLE not in os.environ, reason=by_mergekit.ABSENT)
SHAPES = {"layer.lora_A": (3, 17), "layer.lora_B": (29, 3), "head": (2, 5, 7), "bias": (11,)}
LAYERS = Space(tuple(Slot(name, shape, "lora") for name, shape in SHAPES.items()))


def cohort(clients):
    """Layers of very different lengths, and weights."""
    draw = np.random.default_rng(clients)
    scales = np.repeat([1.0, 0.1, 9.0, 3.0], [slot.numel for slot in LAYERS.slots])
    x = (draw.standard_normal((clients, LAYERS.numel)) * scales).astype(np.float32)
    return [Update(torch.from_numpy(row), float(w)) for row, w in zip(x, draw.uniform(1, 100, clients), strict=True)]


def theirs(method, updates, base, **parameters):
    shapes, weights = [slot.shape for slot in LAYERS.slots], [u.weight for u in updates]
    request = by_mergekit.Request(method, shapes, weights, base, parameters, merged=True)
    return by_mergekit.ask(request, [u.delta.numpy() for u in updates])[1]


@pytest.mark.parametrize(("clients", "density", "normalize"), [(1, 0.2, True), (20, 0.3, False), (20, 0.2, True)])
def test_ties_is_mergekits(clients, density, normalize):
    """With shares of layers that round down, as mergekit rounds, and to the nearest, as we do, to the same number."""
    updates = cohort(clients)
    strategy = TIES(density, aggregate="mean" if normalize else "sum", weights="mergekit")
    found = strategy.merge(updates, Context(LAYERS))
    assert np.allclose(found, theirs("ties", updates, True, density=density, normalize=normalize), rtol=1e-4, atol=1e-5)


def test_the_mean_is_mergekits_linear():
    updates = cohort(20)
    found = Mean().merge(updates, Context(LAYERS))
    assert np.allclose(found, theirs("linear", updates, False), rtol=1e-5, atol=1e-6)


def test_a_scaled_mean_is_mergekits_task_arithmetic():
    updates = cohort(7)
    found = Scaled(Mean(), sum(u.weight for u in updates)).merge(updates, Context(LAYERS))
    assert np.allclose(found, theirs("task_arithmetic", updates, True), rtol=1e-5, atol=1e-3)
