"""Local training by single numbers: slopes along given directions, and a step along each of them."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.errors import RunError
from fedpeft.training.base import Job
from fedpeft.training.first_order import FirstOrderTrainer, batches
from fedpeft.training.subspace import Subspace

Publish: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Walker:
    """Steps along directions that were drawn for it: -learning_rate times the loss's slope, without dropout.

    With "spsa" the slope is (L(w + epsilon u) - L(w - epsilon u)) / (2 epsilon), from two forward passes on one batch
    (Spall, 1992; MeZO, Malladi, Gao, Nichani, Damian, Lee, Chen and Arora, 2023, arXiv 2305.17333): the memory of
    inference. MeZO's directions have a length of about sqrt(d), so its epsilon is to be multiplied by sqrt(d) here, and
    its learning rate by d. With "gradient" one backward pass gives the slopes along all directions of a step, exactly
    and by one transform: for those who have the memory, and at the same byte a step.

    Args:
        trainer: the resident model.
        subspace: the run's directions.
        estimator: how slopes are found.
        epsilon: how far "spsa" goes either way.
        directions_per_step: whose slopes are taken on one batch, and stepped along together; with more, a second of
            "gradient" brings more and a byte less.
    """

    def __init__(
        self,
        trainer: FirstOrderTrainer,
        subspace: Subspace,
        estimator: Literal["spsa", "gradient"] = "gradient",
        epsilon: float = 0.1,
        directions_per_step: int = 32,
    ) -> None:
        if estimator not in ("spsa", "gradient"):
            raise ValueError(f"estimator must be spsa or gradient, got {estimator!r}")
        if not epsilon > 0 or directions_per_step < 1:
            raise ValueError(f"expected epsilon > 0 and a direction a step, got {epsilon} and {directions_per_step}")
        self._trainer, self._subspace, self._per_step = trainer, subspace, directions_per_step
        self._slopes = self._by_gradient if estimator == "gradient" else self._by_losses
        self._epsilon = epsilon

    def walk(self, job: Job, chosen: NDArray[np.int64], publish: Publish) -> None:
        """Step along directions in their order.

        Args:
            job: of its settings, `batch_size`, `learning_rate` and `labels` count.
            chosen: which directions of the subspace; one may come up more than once.
            publish: told the wanted steps, it says which are taken, as others will repeat them.

        Raises:
            RunError: a loss is not finite.
        """
        settings = job.settings
        vector = job.start.to(self._trainer.device)
        self._trainer.adapted.model.eval()
        steps = batches(job.data, -(-chosen.size // self._per_step), settings.batch_size, job.order)
        for i, rows in enumerate(steps):
            some = chosen[i * self._per_step : (i + 1) * self._per_step]
            slopes = self._slopes(job, rows, vector, some)
            if not np.isfinite(slopes).all():
                raise RunError("training diverged: a slope is not finite; lower the learning rate")
            different, which = np.unique(some, return_inverse=True)
            amounts = np.zeros(different.size)
            np.add.at(amounts, which, publish(-settings.learning_rate * slopes))
            vector = vector + self._subspace.along(amounts, vector, different)

    def _by_losses(
        self, job: Job, rows: NDArray[np.int64], vector: Float[Tensor, " d"], some: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        def loss(at: Float[Tensor, " d"]) -> float:
            self._trainer.adapted.write(at)
            return float(self._trainer.loss(job, rows))

        with torch.inference_mode():
            along = (self._subspace.along(np.ones(1), vector, some[j : j + 1]) for j in range(some.size))
            return np.array([slope(loss, vector, direction, self._epsilon) for direction in along])

    def _by_gradient(
        self, job: Job, rows: NDArray[np.int64], vector: Float[Tensor, " d"], some: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        adapted = self._trainer.adapted
        adapted.write(vector)
        parameters = adapted.parameters()
        found = torch.autograd.grad(
            self._trainer.loss(job, rows), parameters, allow_unused=True, materialize_grads=True
        )
        products = self._subspace.products(torch.cat([gradient.reshape(-1) for gradient in found]))
        return products[some].astype(np.float64)


def slope(
    loss: Callable[[Float[Tensor, " d"]], float],
    at: Float[Tensor, " d"],
    direction: Float[Tensor, " d"],
    epsilon: float,
) -> float:
    """Of a loss along a direction of length 1, from two points; exact on a quadratic.

    >>> slope(lambda x: float(x @ x), torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), epsilon=0.5)
    6.0
    """
    ahead, behind = loss(at + epsilon * direction), loss(at - epsilon * direction)
    return (ahead - behind) / (2 * epsilon) if math.isfinite(ahead) and math.isfinite(behind) else math.nan
