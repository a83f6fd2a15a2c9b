"""The server's side of an experiment: a folder that holds everything that a run is and leaves."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from fedpeft import __version__, config, report
from fedpeft.config import Experiment
from fedpeft.data import Example
from fedpeft.durable import append_durably, write_durably
from fedpeft.errors import ConfigError, JournalError, RunError
from fedpeft.federation import Journal, Server, Transport, Watch, unwatched
from fedpeft.preparation import Prepared, Say, prepare
from fedpeft.random import Purpose, Stream
from fedpeft.training.supermask import Supermask

Connect = Callable[[Prepared, Path], Transport]


class Run:
    """An experiment over a transport, ready to run or to be taken up where it stopped.

    Use it as a context manager: it holds the run folder's lock.

    Args:
        experiment: what to run.
        folder: of the run; made if it does not exist.
        connect: makes the transport that reaches the sites, of what was prepared and the run's folder.
        say: told what is being prepared.
        watch: told of what happens.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works on the folder, or its run is in another space.
    """

    free: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        connect: Connect,
        say: Say = lambda text: None,
        watch: Watch = unwatched,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / "journal")
        try:
            self._check_folder()
            self._build(connect, say, watch)
        except BaseException:
            began = bool(self._journal.records)
            self._journal.close()
            if fresh and not began:
                shutil.rmtree(folder)
            raise
        write_durably(folder / "config.yaml", experiment.to_yaml().encode())
        self._write_facts()
        lines = "".join(json.dumps(row) + "\n" for row in self.server.history())
        write_durably(folder / "metrics.jsonl", lines.encode())

    def _check_folder(self) -> None:
        """A run is taken up by the experiment that began it, but for where it runs and how long it goes and waits."""
        done, path = len([r for r in self._journal.records if r["kind"] == "COMMIT"]), self.folder / "config.yaml"
        if self.experiment.rounds < done:
            raise ConfigError(f"rounds: {self.folder} has done {done} already, got {self.experiment.rounds}")
        if path.exists():
            began, now = config.load(path).model_dump(), self.experiment.model_dump()
            for raw in (began, now):
                for key in ("device", "threads"):
                    del raw["model"][key]
            for key in began.keys() - {"rounds", "quorum", "deadline_s"} - self.free:
                if began[key] != now[key]:
                    raise JournalError(f"{self.folder} is of another run: {key} was {began[key]!r}, now {now[key]!r}")

    def _build(self, connect: Connect, say: Say, watch: Watch) -> None:
        experiment = self.experiment
        try:
            plan = experiment.plan()
            prepared = prepare(
                experiment.model, experiment.peft, experiment.data.source, experiment.data.labels, experiment.seed, say
            )
            self._trainer, self.labels, self.space = prepared.trainer, prepared.labels, prepared.space
            density = experiment.training.supermask
            self._mask = Supermask(self.space, density, experiment.seed) if density else None
            start = self._mask.first_scores() if self._mask else self._trainer.adapted.read()
            self._test = self._trainer.encode(prepared.test)
            sample = self._trainer.encode(measured_on(prepared.test, experiment))
            self.test_size = len(sample)
            transport = connect(prepared, self.folder)
        except ValueError as error:
            raise ConfigError(f"these sites, data and plan do not fit: {error}") from None
        evaluate = (lambda vector: self._trainer.evaluate(self._adapter(vector), sample)) if len(sample) else None
        say("measuring the adapter before training")
        try:
            self.server = Server(
                plan,
                self.space,
                start,
                transport,
                self._journal,
                evaluate=evaluate,
                watch=watch,
            )
        except ValueError as error:
            raise ConfigError(f"codec, broadcast or strategy does not fit the adapter: {error}") from None

    def run(self) -> Iterator[dict[str, Any]]:
        """The rounds that are left, each yielded once it is committed; then the adapter is saved.

        Raises:
            RunError: the run cannot go on; what was committed stays, and the run can be resumed.
        """
        try:
            for metrics in self.server.run():
                append_durably(self.folder / "metrics.jsonl", json.dumps(metrics).encode() + b"\n")
                yield metrics
            self._write_facts()
            self.save()
            report.write(self.folder)
        except ConnectionError:
            raise
        except OSError as error:
            why = error.strerror or error
            raise RunError(
                f"{self.folder} cannot be written: {why}; what is there stays, and the run can be resumed"
            ) from error

    def measure(self) -> Mapping[str, float]:
        """Loss and accuracy of the global adapter on all held-out examples, not `data.test_examples` of them."""
        return self._trainer.evaluate(self._adapter(self.server.state.vector), self._test)

    def save(self) -> Path:
        """Write the global adapter in PEFT's format; returns its folder."""
        folder = self.folder / "adapter"
        self._trainer.adapted.adapter(self._adapter(self.server.state.vector)).save(folder)
        if self.labels:
            write_durably(folder / "labels.json", json.dumps(list(self.labels), indent=1).encode())
        write_durably(folder / "README.md", self._card().encode())
        return folder

    def _adapter(self, vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The adapter that a vector stands for: itself, or what its scores choose."""
        return self._mask.adapter(vector) if self._mask else vector

    def sites(self) -> Mapping[str, Mapping[str, int]]:
        """What is known of each site, by name: `examples`, and `labels` (how many classes) where that is known."""
        return {
            name: {"examples": int(site["weight"])}
            for row in self.server.history()
            for name, site in row["sites"].items()
        }

    def facts(self) -> dict[str, Any]:
        """What a report says of the run as a whole."""
        return {
            "name": self.folder.name,
            "version": __version__,
            "experiment": self.experiment.model_dump(),
            "numel": self.space.numel,
            "slots": len(self.space.slots),
            "base_sha256": self.space.base,
            "labels": len(self.labels),
            "test_examples": self.test_size,
            "sites": self.sites(),
            "before": dict(self.server.before()),
        }

    def close(self) -> None:
        """Let another process have the folder."""
        with suppress(OSError):  # a full disk did not take all of a record; nothing was done that it tells of
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_facts(self) -> None:
        write_durably(self.folder / "facts.json", json.dumps(self.facts(), indent=1).encode())

    def _card(self) -> str:
        model, rounds = self.experiment.model, self.server.state.round
        kind, more, note = "AutoModelForCausalLM", "", ""
        if model.task == "sequence-classification":
            kind, more = "AutoModelForSequenceClassification", f", num_labels={len(self.labels)}"
            note = "`labels.json` names the classes in order.\n"
        return (
            f"# An adapter of {model.name}\n\n"
            f"Fine-tuned by {self.experiment.sites} sites in {rounds} rounds with fedpeft {__version__}. {note}\n"
            "```python\n"
            "from peft import PeftModel\n"
            f"from transformers import {kind}\n\n"
            f'base = {kind}.from_pretrained("{model.name}"{more})\n'
            'model = PeftModel.from_pretrained(base, ".")\n'
            "```\n"
        )


def measured_on(examples: tuple[Example, ...], experiment: Experiment) -> tuple[Example, ...]:
    """The held-out examples that each round is measured on."""
    wanted = experiment.data.test_examples
    if not wanted or wanted >= len(examples):
        return examples
    chosen = sorted(Stream(experiment.seed, Purpose.SPLIT, part=1).permutation(len(examples))[:wanted].tolist())
    return tuple(examples[i] for i in chosen)
