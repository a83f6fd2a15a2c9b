"""One finished run, as the row that says all of it."""

import time
from dataclasses import dataclass
from typing import Any

from fedpeft import __version__
from fedpeft.config import Experiment
from simulations.central import central
from simulations.frontier.methods import FP32, Method
from simulations.frontier.tasks import TASKS
from simulations.whole_run import decides, key_of, whole_run

CENTRAL = "central"


@dataclass(frozen=True)
class Work:
    """What a process does at a time: the federated run of a method, or the centralised one where there is none."""

    task: str
    method: Method | None
    seed: int
    quick: bool

    @property
    def name(self) -> str:
        """For who waits."""
        return f"{self.task}, {self.method.name if self.method else CENTRAL}, seed {self.seed}"

    def experiment(self) -> Experiment:
        """What is run."""
        return TASKS[self.task].experiment(self.method or FP32, self.seed, self.quick)

    def key(self) -> str:
        """Hexadecimal hash of what decides the outcome, wherever the data lies."""
        return key_of(decides(self.experiment()), 0 if self.method else TASKS[self.task].central_epochs)


def outcome(work: Work) -> dict[str, Any]:
    """Run it; the row, whose measures are absent where training diverged."""
    experiment, began = work.experiment(), time.perf_counter()
    row: dict[str, Any] = {
        "key": work.key(),
        "task": work.task,
        "partition": experiment.data.partition,
        "method": work.method.name if work.method else CENTRAL,
        "family": work.method.family if work.method else CENTRAL,
        "seed": work.seed,
        "version": __version__,
        "quick": work.quick,
    }
    row |= (
        _federated(experiment)
        if work.method
        else dict(central(experiment, TASKS[work.task].central_epochs, 8 if work.quick else None))
    )
    return {**row, "wall_s": round(time.perf_counter() - began, 1)}


def _federated(experiment: Experiment) -> dict[str, Any]:
    row: dict[str, Any] = {
        "codec": experiment.codec,
        "broadcast": experiment.broadcast,
        "strategy": experiment.strategy,
        "server_optimizer": experiment.server_optimizer,
    }
    run = whole_run(experiment)
    row |= {**run.measured, **run.traffic}
    row["bytes_per_site"] = row["up_bytes_per_site"] + row["down_bytes_per_site"]
    return {**row, "rounds": len(run.rounds), "numel": run.numel}
