"""One finished run, as the row that says all of it."""

import time
from dataclasses import dataclass
from typing import Any

from fedpeft import __version__
from fedpeft.config import Experiment
from simulations.central import central
from simulations.merging.rules import UPDATES, Rule
from simulations.merging.tasks import Task
from simulations.whole_run import decides, key_of, whole_run

CENTRAL = "central"
_PLAIN = Rule("mean", "Mean()")


@dataclass(frozen=True)
class Work:
    """What a process does at a time: the run of a rule, or the centralised one where there is none.

    Args:
        task: what is learned.
        rule: that merges.
        updates: name of one in `UPDATES`.
        seed: of the run.
        quick: two rounds of one step.
    """

    task: Task
    rule: Rule | None
    updates: str
    seed: int
    quick: bool

    @property
    def name(self) -> str:
        """For who waits."""
        what = f"{self.rule.name}, {self.updates}" if self.rule else CENTRAL
        return f"{self.task.name}: {what}, seed {self.seed}"

    def experiment(self) -> Experiment:
        """What is run."""
        return self.task.experiment(self.rule or _PLAIN, UPDATES[self.updates], self.seed, self.quick)

    def key(self) -> str:
        """Hexadecimal hash of what decides the outcome, wherever the data lies."""
        raw = decides(self.experiment())
        if not self.rule:  # the same data in one place, however it is spread
            raw = {"model": raw["model"], "data": raw["data"]["source"], "seed": raw.get("seed", 0)}
        return key_of(raw, 0 if self.rule else self.task.central_epochs, self.quick)


def outcome(work: Work) -> dict[str, Any]:
    """Run it; the row, whose measures are absent where the run could not go on."""
    experiment, began = work.experiment(), time.perf_counter()
    row: dict[str, Any] = {"key": work.key(), "seed": work.seed, "version": __version__, "quick": work.quick}
    if work.rule is None:
        row |= central(experiment, work.task.central_epochs, 4 if work.quick else None)
        return row | {"rule": CENTRAL, "wall_s": round(time.perf_counter() - began, 1)}
    row |= {
        "task": work.task.name,
        "partition": experiment.data.partition,
        "rule": work.rule.name,
        "updates": work.updates,
        "codec": experiment.codec,
        "strategy": experiment.strategy,
        "server_optimizer": experiment.server_optimizer,
    }
    run = whole_run(experiment)
    row |= {**run.measured, **run.traffic, "rounds": len(run.rounds)}
    row["product_error"] = run.rounds[-1]["product_error"] if run.rounds else None
    return row | {"wall_s": round(time.perf_counter() - began, 1)}
