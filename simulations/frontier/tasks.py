"""The two tasks, and how a federated run of each is set up."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedpeft.config import Experiment
from simulations.frontier.methods import Method

_PEFT = "LoraConfig(r={rank}, lora_alpha={alpha}, target_modules='all-linear')"


@dataclass(frozen=True)
class Task:
    """What is learned from what, and the settings under which fp32 federated training does well.

    Args:
        name: in rows and on the command line.
        needs: folder of FEDPEFT_DATA with its data.
        measure: what of the global adapter is compared: "accuracy", or "loss" in nats a token.
        sites: that share the data.
        rounds: of a run.
        model: section of the experiment, but for the name.
        data: section of the experiment.
        training: section of the experiment.
        server_optimizer: of the methods that do not bring their own.
        central_epochs: of the centralised run.
    """

    name: str
    needs: str
    measure: Literal["accuracy", "loss"]
    sites: int
    rounds: int
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    server_optimizer: str
    central_epochs: int

    def missing(self) -> str:
        """The folder that is not there; "" where all are."""
        root = Path(os.environ.get("FEDPEFT_DATA", ""))
        for folder in (self.needs, "stories260k"):
            if "FEDPEFT_DATA" not in os.environ or not (root / folder).is_dir():
                return folder
        return ""

    def experiment(self, method: Method, seed: int, quick: bool) -> Experiment:
        """The run of a method."""
        return Experiment.model_validate(
            {
                "name": "frontier",
                "seed": seed,
                "sites": self.sites,
                "rounds": 2 if quick else self.rounds // method.fewer,
                "model": {"name": str(Path(os.environ["FEDPEFT_DATA"]) / "stories260k"), "threads": 1, **self.model},
                "peft": _PEFT.format(rank=method.rank, alpha=method.alpha or method.rank),
                "data": {"test_examples": 64, **self.data},
                "training": {
                    **self.training,
                    "start": method.start,
                    "local_steps": 2 if quick else self.training["local_steps"] * method.fewer * method.longer,
                },
                "codec": method.codec,
                "broadcast": method.broadcast,
                "strategy": "Mean()",
                "server_optimizer": method.server_optimizer or self.server_optimizer,
            }
        )


TASKS = {
    task.name: task
    for task in (
        Task(
            name="clinc150",
            needs="clinc150",
            measure="accuracy",
            sites=10,
            rounds=48,
            model={"max_length": 32},
            data={
                "source": "simulations.clinc150.Clinc150(per_intent=50, classes='domains')",
                "partition": "Dirichlet(alpha=0.5)",
            },
            training={"local_steps": 4, "batch_size": 16, "learning_rate": 5e-3},
            server_optimizer="SGD(lr=2.0, momentum=0.5)",
            central_epochs=4,
        ),
        Task(
            name="shakespeare",
            needs="tinyshakespeare",
            measure="loss",
            sites=4,
            rounds=48,
            model={"task": "causal-lm", "max_length": 96},
            data={"source": "simulations.frontier.shakespeare.Shakespeare(speakers=4)", "partition": "ByGroup()"},
            training={"local_steps": 5, "batch_size": 4, "learning_rate": 3e-3, "labels": "all"},
            server_optimizer="SGD(lr=2.0, momentum=0.5)",
            central_epochs=4,
        ),
    )
}
