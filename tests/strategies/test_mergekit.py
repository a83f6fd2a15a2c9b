"""Rules beside mergekit's own code of the same name, on layers that are not square."""

import os

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import DARE, DELLA, TIES, Breadcrumbs, Context, Mean, Scaled, Update
from simulations import by_mergekit

pytestmark = pytest.mark.skipif(by_mergekit.VARIABLE not in os.environ, reason=by_mergekit.ABSENT)
SHAPES = {"layer.lora_A": (3, 17), "layer.lora_B": (29, 3), "head": (2, 5, 7), "bias": (11,)}
LAYERS = Space(tuple(Slot(name, shape, "lora") for name, shape in SHAPES.items()))
# Of these, half and a tenth are whole numbers.
EVEN = Space((Slot("a", (10, 4), "lora"), Slot("b", (15, 20), "lora"), Slot("bias", (10,), "lora")))
# The same layer many times over, so that what is drawn at random is seen often.
SIZE, COPIES = 30, 1000
COPIED = Space(tuple(Slot(f"{i:04}", (1, SIZE), "lora") for i in range(COPIES)))


def cohort(clients, space=LAYERS):
    """Layers of very different lengths, and weights."""
    draw = np.random.default_rng(clients)
    scales = np.repeat([1.0, 0.1, 9.0, 3.0][: len(space.slots)], [slot.numel for slot in space.slots])
    x = (draw.standard_normal((clients, space.numel)) * scales).astype(np.float32)
    return [Update(torch.from_numpy(row), float(w)) for row, w in zip(x, draw.uniform(1, 100, clients), strict=True)]


def theirs(method, updates, base, space=LAYERS, **parameters):
    shapes, weights = [slot.shape for slot in space.slots], [u.weight for u in updates]
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


def summed(updates):
    """Their sum of deltas at their weights."""
    return Scaled(Mean(), sum(u.weight for u in updates))


ELECTED = TIES(trim="none", aggregate="sum")


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_are_mergekits_where_both_numbers_are_whole(method, gamma):
    updates = cohort(5, EVEN)
    inside = summed(updates) if method == "breadcrumbs" else ELECTED
    found = Breadcrumbs(inside, 0.5, gamma).merge(updates, Context(EVEN))
    assert np.allclose(found, theirs(method, updates, True, EVEN, density=0.5, gamma=gamma), rtol=1e-4, atol=1e-3)


def test_mergekits_breadcrumbs_round_both_numbers_down():
    space = Space(tuple(Slot(f"{size:03}", (size,), "lora") for size in (1, 10, 51, 100)))
    update = Update(torch.arange(1.0, 1.0 + space.numel))
    found = Breadcrumbs(Mean(), 0.5, 0.01).merge([update], Context(space))
    other = torch.from_numpy(theirs("breadcrumbs", [update], True, space, density=0.5, gamma=0.01).copy())
    kept = [[int((space.view(x, s.name) != 0).sum()) for s in space.slots] for x in (found, other)]
    largest = [[bool(space.view(x, s.name)[-1]) for s in space.slots] for x in (found, other)]
    assert kept == [[1, 5, 26, 50], [0, 5, 25, 50]]
    assert largest == [[True, True, False, False], [False, True, True, False]]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_whole_density_leaves_mergekits_merge(method):
    updates = cohort(5)
    normalised = TIES(trim="none") if method == "della" else ELECTED
    inside = summed(updates) if method.endswith("linear") else normalised
    ours = DARE(inside, 1.0, rescale="l1") if method.startswith("dare") else DELLA(inside, 1.0, epsilon=0.0)
    found = ours.merge(updates, Context(LAYERS))
    assert np.allclose(found, theirs(method, updates, True, density=1.0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "ours", "epsilon", "keeps_l1"),
    [("dare_linear", DARE(Mean(), 0.5, rescale="l1"), 0.0, (True, True)),
     ("della_linear", DELLA(Mean(), 0.5, epsilon=0.3), 0.3, (False, True))],
    ids=repr,
)  # fmt: skip
def test_a_coordinate_is_kept_as_often_as_by_mergekit(method, ours, epsilon, keeps_l1):
    """By its rank in the layer, from density - epsilon to density + epsilon; within five standard deviations."""
    layer = torch.from_numpy(np.random.default_rng(0).standard_normal(SIZE)).float()
    update, more = Update(layer.repeat(COPIES)), {"epsilon": epsilon} if epsilon else {}
    wanted = 0.5 - epsilon + 2 * epsilon * layer.abs().argsort().argsort() / (SIZE - 1)
    both = (
        ours.merge([update], Context(COPIED)),
        torch.from_numpy(theirs(method, [update], True, COPIED, density=0.5, **more).copy()),
    )
    for x, keeps in zip(both, keeps_l1, strict=True):
        rows = x.view(COPIES, SIZE)
        often = (rows != 0).float().mean(0)
        assert torch.all((often - wanted).abs() < 5 * (wanted * (1 - wanted) / COPIES).sqrt())
        assert torch.allclose(rows.abs().sum(1), layer.abs().sum().expand(COPIES), rtol=1e-4) == keeps
