"""One finished run under attack, as the row that says all of it."""

import time
from dataclasses import dataclass
from typing import Any

from fedpeft import __version__
from fedpeft.config import Experiment
from simulations.attacks import ATTACKS
from simulations.dishonest import attacked
from simulations.frontier.methods import Method
from simulations.frontier.tasks import TASKS
from simulations.robustness.rules import Rule
from simulations.whole_run import decides, key_of, whole_run

NONE = "none"
TASK = TASKS["clinc150"]
_ROUNDS, _PARTITION = 12, "Dirichlet(alpha=1.0)"


@dataclass(frozen=True)
class Work:
    """What a process does at a time.

    Args:
        rule: that merges.
        attack: name of one in `ATTACKS`, or `NONE`.
        dishonest: how many of the sites are.
        seed: of the run.
        quick: two rounds of two steps.
    """

    rule: Rule
    attack: str
    dishonest: int
    seed: int
    quick: bool

    @property
    def name(self) -> str:
        """For who waits."""
        return f"{self.rule.name}, {self.attack}, {self.dishonest} of {TASK.sites}, seed {self.seed}"

    def experiment(self) -> Experiment:
        """What is run; a site whose update is refused does not end it."""
        start = "own" if "ErrorFeedback" in self.rule.codec else "global"
        raw = TASK.experiment(Method(self.rule.name, "", self.rule.codec, start=start), self.seed, self.quick)
        changed = raw.model_dump() | {"name": "robustness", "strategy": self.rule.strategy, "quorum": 0.5}
        changed["data"]["partition"] = _PARTITION
        if not self.quick:
            changed["rounds"] = _ROUNDS
        return Experiment.model_validate(changed)

    def key(self) -> str:
        """Hexadecimal hash of what decides the outcome, wherever the data lies."""
        attack = repr(ATTACKS[self.attack]) if self.dishonest else NONE
        return key_of(decides(self.experiment()), attack, self.dishonest)


def outcome(work: Work) -> dict[str, Any]:
    """Run it; the row, whose measures are absent where the run could not go on."""
    experiment, began, spent = work.experiment(), time.perf_counter(), time.process_time()
    row: dict[str, Any] = {
        "key": work.key(),
        "task": TASK.name,
        "partition": experiment.data.partition,
        "rule": work.rule.name,
        "strategy": experiment.strategy,
        "codec": experiment.codec,
        "attack": work.attack,
        "dishonest": work.dishonest,
        "sites": experiment.sites,
        "seed": work.seed,
        "version": __version__,
        "quick": work.quick,
    }
    connect = attacked(experiment, ATTACKS[work.attack], work.dishonest) if work.dishonest else None
    run = whole_run(experiment, connect)
    row |= {**run.measured, "rounds": len(run.rounds), "refused": sum(metrics["refused"] for metrics in run.rounds)}
    seconds = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - spent}
    return row | {name: round(value, 1) for name, value in seconds.items()}
