"""A trainer of a real problem that takes no time: each member pulls the adapter towards a point of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.training import Encoded, Job, Trained
from tests.strategies.examples import SPACE

RUN = bytes(range(32))


def point(seed: int) -> Tensor:
    return torch.randn(SPACE.numel, generator=torch.Generator().manual_seed(seed))


def examples(target: int, count: int = 8) -> Encoded:
    """Examples of which the trainer reads one token: which point they ask for."""
    return Encoded(((target,),) * count, (0,) * count)


@dataclass
class Pull:
    """Gradient descent on half the squared distance to the point of the data."""

    jobs: int = 0

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        for job in jobs:
            self.jobs += 1
            target, vector = point(job.data.tokens[0][0]), job.start.clone()
            for _ in range(job.settings.local_steps):
                vector = vector + job.settings.learning_rate * (target - vector)
            yield Trained(vector, {"loss": float((target - vector).square().mean())})
