"""What is learned, and how it is spread over sites."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedpeft import strategies
from fedpeft.config import Experiment
from simulations.merging.rules import Rule


@dataclass(frozen=True)
class Task:
    """A data set and a way to spread it.

    Args:
        name: in rows and on the command line.
        needs: folders of FEDPEFT_DATA.
        measure: what is compared: "accuracy", or "loss" in nats a token.
        sites: that share the data.
        central_epochs: of the centralised run.
        settings: of the experiment.
    """

    name: str
    needs: tuple[str, ...]
    measure: Literal["accuracy", "loss"]
    sites: int
    central_epochs: int
    settings: Mapping[str, Any]

    def missing(self) -> str:
        """The folder that is not there; "" where all are."""
        root = Path(os.environ.get("FEDPEFT_DATA", "missing"))
        return next((folder for folder in self.needs if not (root / folder).is_dir()), "")

    def takes(self, rule: Rule) -> bool:
        """Whether a rule can merge here: heads only where there are some, and there are sites enough."""
        return (self.measure == "accuracy" or not rule.heads) and strategies.parse(rule.strategy).least <= self.sites

    def experiment(self, rule: Rule, updates: str, seed: int, quick: bool) -> Experiment:
        """The run of a rule, with updates as this codec."""
        raw = {"name": "merging", "seed": seed, "sites": self.sites, **self.settings}
        raw["model"] = {"threads": 1, **raw["model"]}
        if "{data}" in raw["model"].get("name", ""):
            raw["model"]["name"] = raw["model"]["name"].format(data=os.environ["FEDPEFT_DATA"])
        raw["training"] = {**raw["training"], **rule.training}
        if quick:
            raw |= {"rounds": 2}
            raw["training"]["local_steps"] = 1
            raw["data"] = {**raw["data"], "test_examples": 50}
        plain = rule.codec.format(updates)
        raw |= {"codec": plain if updates.startswith("Identity") else f"ErrorFeedback({plain})"}
        raw |= {"strategy": rule.strategy, "server_optimizer": rule.server_optimizer}
        return Experiment.model_validate(raw)


_CLINC150 = {
    "rounds": 10,
    "model": {"max_length": 32, "dtype": "bfloat16"},
    "training": {"local_steps": 5, "batch_size": 16, "learning_rate": 7e-3},
    "broadcast": "Uniform(bits=4)",
}


def _clinc150(name: str, partition: str) -> Task:
    data = {
        "source": "simulations.clinc150.Clinc150(per_intent=50)",
        "partition": partition,
        "test_examples": 1,
    }
    return Task(name, ("clinc150",), "accuracy", 10, 8, {**_CLINC150, "data": data})


_SPEAKERS = Task(
    "speakers",
    ("tinyshakespeare", "stories260k"),
    "loss",
    4,
    4,
    {
        "rounds": 20,
        "model": {"name": "{data}/stories260k", "task": "causal-lm", "max_length": 96},
        "peft": "LoraConfig(r=8, lora_alpha=8, target_modules='all-linear')",
        "data": {
            "source": "simulations.frontier.shakespeare.Shakespeare(speakers=4)",
            "partition": "ByGroup()",
            "test_examples": 1,
        },
        "training": {"local_steps": 10, "batch_size": 4, "learning_rate": 3e-3, "labels": "all"},
        "broadcast": "Uniform(bits=4)",
    },
)
TASKS = {
    task.name: task
    for task in (
        _clinc150("a-domain-each", "ByLabel()"),
        _clinc150("dirichlet-0.1", "Dirichlet(alpha=0.1)"),
        _clinc150("dirichlet-0.5", "Dirichlet(alpha=0.5)"),
        _SPEAKERS,
    )
}
