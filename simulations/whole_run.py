"""One federated run from its beginning to its end, as what a row says of it."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.config import Experiment
from fedpeft.errors import RunError
from fedpeft.run import Connect
from fedpeft.simulation import Simulation


@dataclass(frozen=True)
class WholeRun:
    """What came out.

    Args:
        measured: loss and accuracy on all held-out examples; "failure" instead, where the run could not go on.
        rounds: the metrics of each.
        numel: trainable parameters.
        sites: that shared the data.
    """

    measured: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    numel: int
    sites: int

    @property
    def traffic(self) -> dict[str, float | None]:
        """Bytes of a site in the whole run, as sent, and their ratio to fp32's, both ways."""
        row: dict[str, float | None] = {}
        for way in ("up", "down"):
            sent, dense = (sum(r[f"{way}_bytes{kind}"] for r in self.rounds) for kind in ("", "_fp32"))
            row[f"{way}_bytes_per_site"] = sent / self.sites
            row[f"{way}_ratio_to_fp32"] = sent / dense if dense else None
        return row


def decides(experiment: Experiment) -> dict[str, Any]:
    """What of an experiment decides its outcome, wherever the data lies and however many threads work."""
    raw = experiment.model_dump(mode="json")
    raw["model"] |= {"name": Path(raw["model"]["name"]).name, "threads": 0}
    return raw


def key_of(*facts: Any) -> str:
    """A short hash of facts that JSON can hold, by which a cache knows a run."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def whole_run(experiment: Experiment, connect: Connect | None = None) -> WholeRun:
    """Run an experiment in a folder that is gone afterwards.

    Args:
        experiment: what to run.
        connect: what reaches the sites, as a `Simulation` takes it.
    """
    with tempfile.TemporaryDirectory() as folder, Simulation(experiment, Path(folder), connect=connect) as simulation:
        measured: Mapping[str, Any]
        try:
            for _ in simulation.run():
                pass
            measured = simulation.measure()
        except RunError as error:
            measured = {"failure": str(error)}
        return WholeRun(measured, simulation.server.history(), simulation.space.numel, experiment.sites)
