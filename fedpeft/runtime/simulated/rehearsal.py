"""A whole experiment without a server: its sites are peers in one process, with one resident base model."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft import simulation
from fedpeft.config import Experiment
from fedpeft.config.swarm import SwarmSection
from fedpeft.durable import append_durably, write_durably
from fedpeft.errors import ConfigError
from fedpeft.keys.signing import digest
from fedpeft.preparation import Say, prepare
from fedpeft.run import measured_on
from fedpeft.runtime.simulated.modes import Cast, Log, Mode, Neighbourly
from fedpeft.training import Encoded


class Rehearsal:
    """An experiment whose sites are peers, all of them here.

    Args:
        experiment: what the peers train on, how, for how many epochs, and with which codec and strategy.
        swarm: how they talk.
        folder: of the run; made if it does not exist.
        say: told what is being prepared.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used, or takes a server.
    """

    def __init__(self, experiment: Experiment, swarm: SwarmSection, folder: Path, say: Say = lambda text: None) -> None:
        self.experiment, self.swarm, self.folder = experiment, swarm, folder
        known = experiment.data
        prepared = prepare(experiment.model, experiment.peft, known.source, known.labels, experiment.seed, say)
        self._trainer, self.space, self.labels = prepared.trainer, prepared.space, prepared.labels
        self._test = prepared.trainer.encode(prepared.test)
        self._sample = prepared.trainer.encode(measured_on(prepared.test, experiment))
        described = f"{experiment.to_yaml()}{swarm.model_dump_json()}".encode()
        run = digest("rehearsal", described, prepared.space.fingerprint)
        try:
            split = simulation.partition(experiment, prepared)
            data = [prepared.trainer.encode([prepared.train[row] for row in rows]) for rows in split]
            cast = Cast(experiment, swarm, prepared.trainer, data, run)
            self.mode: Mode = Neighbourly(cast) if swarm.mode == "gossip" else Log(cast)
        except ValueError as error:
            raise ConfigError(f"these sites, data and plan do not fit: {error}") from None
        self.sizes = [len(one) for one in data]
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "config.yaml", experiment.to_yaml().encode())

    def run(self) -> Iterator[Mapping[str, Any]]:
        """Go through all epochs, and save the adapter; yields what each epoch came to.

        Raises:
            RunError: training diverged, or an epoch does not close.
        """
        began, before = time.perf_counter(), 0
        for epoch in self.mode.epochs(self.experiment.rounds):
            seconds, sent = time.perf_counter() - began, self.mode.sent_bytes()
            scores = self._scores(self._sample)
            row = {"epoch": epoch, "sent_bytes": sent - before, "epoch_s": seconds, **self.mode.stand(), **scores}
            append_durably(self.folder / "metrics.jsonl", json.dumps(row).encode() + b"\n")
            yield row
            began, before = time.perf_counter(), sent
        self._trainer.adapted.adapter(self.mode.adapter()).save(self.folder / "adapter")
        if self.labels:
            write_durably(self.folder / "adapter" / "labels.json", json.dumps(list(self.labels), indent=1).encode())

    def measure(self) -> Mapping[str, float]:
        """Loss and accuracy on all held-out examples, the means over adapters that peers hold."""
        return self._scores(self._test)

    def _scores(self, examples: Encoded) -> Mapping[str, float]:
        found = [self._trainer.evaluate(vector, examples) for vector in self.mode.held()] if len(examples) else []
        return {name: sum(one[name] for one in found) / len(found) for name in (found[0] if found else ())}
