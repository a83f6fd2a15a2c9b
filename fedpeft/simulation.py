"""A whole experiment in one process: several sites, one resident base model, real bytes between them."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fedpeft import __version__, adapters, config, data, expressions, kernels
from fedpeft.adapters import AdaptedModel
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, JournalError
from fedpeft.federation import Client, ClientStore, Journal, Server
from fedpeft.federation.journal import write_durably
from fedpeft.random import Purpose, Stream
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.models import load_base

Say = Callable[[str], None]


@dataclass(frozen=True)
class Site:
    """A simulated site.

    Args:
        name: its node id.
        size: number of its examples.
        label_counts: how many of them have each label.
    """

    name: str
    size: int
    label_counts: tuple[int, ...]


class Simulation:
    """An experiment, built and ready to run or to be taken up where it stopped.

    Use it as a context manager: it holds the run folder's lock.

    Args:
        experiment: what to run.
        folder: of the run; made if it does not exist.
        say: told what is being prepared.
        watch: told of every reply: the site, and "counted" or why not.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works on the folder, or its run is in another space.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        say: Say = lambda text: None,
        watch: Callable[[str, str], None] = lambda site, outcome: None,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / "journal")
        try:
            self._build(say, watch)
        except BaseException:
            self._journal.close()
            raise

    def _build(self, say: Say, watch: Callable[[str, str], None]) -> None:
        experiment, model = self.experiment, self.experiment.model
        self._claim_folder()
        torch.set_num_threads(model.threads)
        if not kernels.is_warm():
            say("compiling kernels (once on this machine)")
        kernels.warm_up()
        plan = experiment.plan()
        say(f"reading {experiment.data.source}")
        corpus = data.parse_source(experiment.data.source, imports=True).load(experiment.seed)
        try:
            split = data.parse_partition(experiment.data.partition, imports=True).split(
                corpus.train, experiment.sites, experiment.seed
            )
        except ValueError as error:
            raise ConfigError(f"data.partition: {error}") from None
        say(f"loading {model.name}")
        base = load_base(model.name, model.task, corpus.labels, Stream(experiment.seed, Purpose.INIT, 1))
        adapted = AdaptedModel(
            base.model,
            adapters.for_task(adapters.parse_config(experiment.peft), model.task),
            base.sha256,
            base.name,
            Stream(experiment.seed, Purpose.INIT, 2),
        )
        start = adapted.read()
        trainer = FirstOrderTrainer(base, adapted, model.task, model.max_length, model.device, model.dtype)
        self.labels, self._adapted = corpus.labels, adapted
        summaries = data.describe(corpus.train, split)
        width = len(str(experiment.sites))
        names = [f"site-{i:0{width}}" for i in range(1, experiment.sites + 1)]
        self.sites = [Site(n, s.size, s.label_counts) for n, s in zip(names, summaries, strict=True)]
        self.test_size = len(_subset(corpus.test, experiment))
        test = trainer.encode(_subset(corpus.test, experiment))
        clients = {
            name: Client(
                trainer,
                trainer.encode([corpus.train[i] for i in rows]),
                adapted.space,
                ClientStore(self.folder / "sites" / f"{name}.state", adapted.space),
                plugins={repr(codec): codec for codec in (plan.codec, plan.broadcast)},
            )
            for name, rows in zip(names, split, strict=True)
        }
        say("measuring the adapter before training")
        self.server = Server(
            plan,
            adapted.space,
            start,
            MemoryTransport(clients),
            self._journal,
            evaluate=(lambda vector: trainer.evaluate(vector, test)) if len(test) else None,
            watch=watch,
        )
        self._write_metrics()

    def run(self) -> Iterator[dict[str, Any]]:
        """The rounds that are left, each yielded once it is committed; then the adapter is saved.

        Raises:
            RunError: the run cannot go on; what was committed stays, and the run can be resumed.
        """
        for metrics in self.server.run():
            self._write_metrics()
            yield metrics
        self.save()

    def save(self) -> Path:
        """Write the global adapter in PEFT's format; returns its folder."""
        folder = self.folder / "adapter"
        self._adapted.adapter(self.server.state.vector).save(folder)
        if self.labels:
            (folder / "labels.json").write_text(json.dumps(list(self.labels), indent=1) + "\n")
        (folder / "README.md").write_text(self._card())
        return folder

    def facts(self) -> dict[str, Any]:
        """What a report says of the run as a whole."""
        return {
            "name": self.folder.name,
            "version": __version__,
            "experiment": self.experiment.model_dump(),
            "numel": self._adapted.space.numel,
            "slots": len(self._adapted.space.slots),
            "base_sha256": self._adapted.space.base,
            "labels": len(self.labels),
            "test_examples": self.test_size,
            "sites": {
                site.name: {"examples": site.size, "labels": sum(n > 0 for n in site.label_counts)}
                for site in self.sites
            },
            "before": dict(self.server.before()),
        }

    def _claim_folder(self) -> None:
        """Keep the experiment beside its run; a run is taken up by the experiment that began it, with other rounds."""
        path = self.folder / "config.yaml"
        if path.exists():
            began, now = config.load(path).model_dump(), self.experiment.model_dump()
            for key in began.keys() - {"rounds"}:
                if began[key] != now[key]:
                    raise JournalError(f"{self.folder} is of another run: {key} was {began[key]!r}, now {now[key]!r}")
        write_durably(path, self.experiment.to_yaml().encode())

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self.server.history())
        write_durably(self.folder / "metrics.jsonl", lines.encode())
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


def simulate(
    experiment: Experiment | Mapping[str, Any] | None = None, folder: Path | str = "runs/simulation"
) -> list[dict[str, Any]]:
    """Run an experiment to its end, or take it up where it stopped; returns the metrics of its rounds.

    Args:
        experiment: as an object, as the dictionary that a YAML holds, or None for the demo.
        folder: of the run.
    """
    if not isinstance(experiment, Experiment):
        experiment = Experiment.model_validate(experiment or {})
    with Simulation(experiment, Path(folder)) as simulation:
        for _ in simulation.run():
            pass
        return simulation.server.history()


def new_folder(runs: Path, name: str) -> Path:
    """A folder for a new run: `runs/name`, or `runs/name-2` and so on where earlier runs are."""
    number = 1
    while (folder := runs / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def resume(run: str, rounds: int | None = None, runs: Path = Path("runs")) -> tuple[Experiment, Path]:
    """Experiment and folder of a run that exists, by its folder or by its name in `runs`.

    Args:
        run: folder or name.
        rounds: rounds in all, instead of what the run's config says.
        runs: where runs are.

    Raises:
        JournalError: there is no such run.
    """
    folder = next((path for path in (Path(run), runs / run) if (path / "config.yaml").exists()), None)
    if folder is None:
        names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
        raise JournalError(f"{run!r} is no run; {expressions.nearest(run, names) if names else f'{runs}/ holds none'}")
    return config.load(folder / "config.yaml", [f"rounds={rounds}"] if rounds else []), folder


def _subset(examples: tuple[data.Example, ...], experiment: Experiment) -> tuple[data.Example, ...]:
    wanted = experiment.data.test_examples
    if not wanted or wanted >= len(examples):
        return examples
    chosen = sorted(Stream(experiment.seed, Purpose.SPLIT, 1).permutation(len(examples))[:wanted].tolist())
    return tuple(examples[i] for i in chosen)
