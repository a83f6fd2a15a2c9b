"""Walking by slopes: the estimate is the projected gradient, and a tiny model learns in both ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.errors import RunError
from fedpeft.kernels import device
from fedpeft.peers.scalar import ScalarLedger
from fedpeft.peers.scalar_work import ScalarWork
from fedpeft.random import Purpose, Stream
from fedpeft.training import Job, Settings
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.subspace import Subspace
from fedpeft.training.zeroth_order import Walker, slope
from tests import tiny
from tests.training.test_first_order import EXAMPLES, trainer

ESTIMATORS = ["spsa", "gradient"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FirstOrderTrainer:
    return trainer(tiny.save_bert(tmp_path_factory.mktemp("bert")), "sequence-classification")


@pytest.fixture(scope="module")
def start(model: FirstOrderTrainer) -> torch.Tensor:
    return model.adapted.read()


def job(model: FirstOrderTrainer, start: torch.Tensor, **settings: object) -> Job:
    order = Stream(0, Purpose.DATA, 1, 1)
    dropout = replace(order, purpose=Purpose.DROPOUT)
    return Job(start, model.encode(EXAMPLES), Settings(**{"batch_size": 8, **settings}), order, dropout)


def test_two_points_have_the_projected_gradient_as_their_mean_on_a_quadratic():
    d, ledger = 300, ScalarLedger(torch.zeros(300), seed=0, count=64)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=draw, dtype=torch.float64)
    curvature, b, at = a @ a.T / d, *torch.randn(2, d, generator=draw, dtype=torch.float64)
    slopes = np.array(
        [
            slope(lambda w: float(w @ curvature @ w / 2 + b @ w), at, ledger.direction(i).double(), epsilon=0.3)
            for i in range(64)
        ]
    )
    gradient = (curvature @ at + b).float()
    assert np.allclose(slopes, ledger.subspace.products(gradient), atol=1e-4), "each is the slope along its direction"
    drawn = np.concatenate([ledger.directions(1, 1, number) for number in range(1, 401)])
    estimates = 64 * np.bincount(drawn, slopes[drawn], minlength=64) / drawn.size
    projected = ledger.subspace.along(slopes, gradient)
    mean = ledger.subspace.along(estimates, gradient)
    assert torch.linalg.vector_norm(mean - projected) < 4 * torch.linalg.vector_norm(projected) * np.sqrt(
        64 / drawn.size
    )


def test_both_estimators_find_the_slopes_of_the_model(model, start):
    subspace, task = Subspace(model.adapted.space.numel, 256, 0), job(model, start, learning_rate=1e-6, batch_size=32)
    found = {}
    for estimator in ESTIMATORS:
        taken: list[float] = []

        def publish(steps, taken=taken):
            taken.extend(steps)
            return np.zeros(steps.size)

        Walker(model, subspace, estimator, epsilon=0.01, directions_per_step=64).walk(task, np.arange(64), publish)
        found[estimator] = -np.array(taken) / 1e-6
    spsa, exact = found["spsa"], found["gradient"]
    assert np.linalg.norm(spsa - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("rounding", ["nearest", "random"])
@pytest.mark.parametrize(("estimator", "per_step"), [("spsa", 8), ("gradient", 32)])
def test_a_tiny_model_learns_from_its_segments(model, start, estimator, per_step, rounding):
    data = model.encode(EXAMPLES)
    ledger = ScalarLedger(start, seed=0, count=512, unit=2.0**-12, per_segment=128)
    walker = Walker(model, ledger.subspace, estimator, epsilon=0.05, directions_per_step=per_step)
    work = ScalarWork(ledger, walker, data, Settings(batch_size=16, learning_rate=3.0), rounding)
    state = ledger.beginning()
    before = model.evaluate(work.adapter(state), data)
    for epoch in (1, 2):
        body = work.segment(state, epoch, 1, 1)
        ledger.check(body)
        assert len(body) == 128
        state = ledger.fold(state, epoch, {1: [body]})
    after = model.evaluate(work.adapter(state), data)
    assert after["loss"] < 0.7 * before["loss"]


def test_a_segment_is_the_same_when_asked_again(model, start):
    ledger = ScalarLedger(start, seed=0, count=512, per_segment=32)
    work = ScalarWork(
        ledger, Walker(model, ledger.subspace), model.encode(EXAMPLES), Settings(batch_size=4), rounding="random"
    )
    body = work.segment(ledger.beginning(), 1, 1, 1)
    other = work.segment(ledger.beginning(), 1, 1, 2)
    assert work.segment(ledger.beginning(), 1, 1, 1) == body != other
    with device.anywhere():
        assert work.segment(ledger.beginning(), 1, 1, 1) == body, "torch's kernels take the same steps"


def test_a_walk_follows_what_is_taken_and_not_what_was_wanted(model, start):
    """Where nothing is taken the adapter stays, so the second step has the slopes of the start."""
    subspace, task = Subspace(model.adapted.space.numel, 256, 0), job(model, start, learning_rate=1.0, batch_size=96)
    chosen, wanted = np.arange(8), []

    def none_taken(steps):
        wanted.append(steps)
        return np.zeros(steps.size)

    Walker(model, subspace, directions_per_step=4).walk(task, chosen, none_taken)
    Walker(model, subspace, directions_per_step=8).walk(task, chosen, none_taken)
    assert np.allclose(np.concatenate(wanted[:2]), wanted[2], rtol=1e-3, atol=1e-6)


def test_a_direction_that_comes_up_twice_is_stepped_along_twice(model, start):
    subspace, task = Subspace(model.adapted.space.numel, 256, 0), job(model, start, learning_rate=1.0)
    seen = []

    class Watched(Subspace):
        def along(self, amounts, like, chosen=None):
            seen.append((amounts.tolist(), chosen.tolist()))
            return super().along(amounts, like, chosen)

    watched = Watched(subspace.numel, subspace.count, subspace.seed)
    Walker(model, watched, directions_per_step=3).walk(task, np.array([7, 2, 7]), lambda steps: np.array([1.0, 2.0, 3]))
    assert seen == [([2.0, 4.0], [2, 7])]


def test_a_walk_leaves_gradients_and_the_global_generator_alone(model, start):
    state = torch.random.get_rng_state()
    subspace = Subspace(model.adapted.space.numel, 256, 0)
    Walker(model, subspace).walk(job(model, start), np.arange(64), lambda steps: steps)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.adapted.parameters())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_loss_that_is_not_finite_is_said(model, start, estimator):
    subspace, task = Subspace(model.adapted.space.numel, 256, 0), job(model, start)
    lost = replace(task, start=torch.full_like(task.start, 1e30))
    with pytest.raises(RunError, match="lower the learning rate"):
        Walker(model, subspace, estimator).walk(lost, np.arange(4), lambda steps: steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "forward"}, "estimator must be spsa or gradient, got 'forward'"),
        ({"epsilon": 0.0}, "expected epsilon > 0"),
        ({"directions_per_step": 0}, "expected epsilon > 0 and a direction a step, got 0.1 and 0"),
    ],
)
def test_wrong_arguments_are_named(model, settings, message):
    with pytest.raises(ValueError, match=message):
        Walker(model, Subspace(64, 2, 0), **settings)
