"""A whole experiment in one process: several sites, one resident base model, real bytes between them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fedpeft import __version__, adapters, config, data, expressions, kernels, report
from fedpeft.adapters import AdaptedModel
from fedpeft.config import Experiment
from fedpeft.durable import write_durably
from fedpeft.errors import ConfigError, JournalError
from fedpeft.federation import Client, ClientStore, Journal, Server, Watch, unwatched
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
        watch: told of what happens.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works on the folder, or its run is in another space.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        say: Say = lambda text: None,
        watch: Watch = unwatched,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / "journal")
        try:
            self._check_folder()
            self._build(say, watch)
        except BaseException:
            began = bool(self._journal.records)
            self._journal.close()
            if fresh and not began:
                shutil.rmtree(folder)
            raise
        write_durably(folder / "config.yaml", experiment.to_yaml().encode())
        self._write_metrics()

    def _check_folder(self) -> None:
        """A run is taken up by the experiment that began it, with as many rounds as are done, or more."""
        done, path = len([r for r in self._journal.records if r["kind"] == "COMMIT"]), self.folder / "config.yaml"
        if self.experiment.rounds < done:
            raise ConfigError(f"rounds: {self.folder} has done {done} already, got {self.experiment.rounds}")
        if path.exists():
            began, now = config.load(path).model_dump(), self.experiment.model_dump()
            for key in began.keys() - {"rounds"}:
                if began[key] != now[key]:
                    raise JournalError(f"{self.folder} is of another run: {key} was {began[key]!r}, now {now[key]!r}")

    def _build(self, say: Say, watch: Watch) -> None:
        experiment, model = self.experiment, self.experiment.model
        torch.set_num_threads(model.threads)
        if not kernels.is_warm():
            say("compiling kernels (once on this machine)")
        kernels.warm_up()
        try:
            plan = experiment.plan()
            say(f"reading {experiment.data.source}")
            corpus = data.parse_source(experiment.data.source, imports=True).load(experiment.seed)
            partition = data.parse_partition(experiment.data.partition, imports=True)
            split = partition.split(corpus.train, experiment.sites, experiment.seed)
        except ValueError as error:
            raise ConfigError(f"these sites, data and plan do not fit: {error}") from None
        say(f"loading {model.name}")
        self._trainer = make_trainer(experiment, corpus)
        self.labels, self.space = corpus.labels, self._trainer.adapted.space
        self.sites = _named(data.describe(corpus.train, split))
        start = self._trainer.adapted.read()
        self._test = self._trainer.encode(corpus.test)
        sample = self._trainer.encode(_subset(corpus.test, experiment))
        clients = {
            site.name: Client(
                self._trainer,
                self._trainer.encode([corpus.train[i] for i in rows]),
                self.space,
                ClientStore(self.folder / "sites" / f"{site.name}.state", self.space),
                plugins={repr(codec): codec for codec in (plan.codec, plan.broadcast)},
            )
            for site, rows in zip(self.sites, split, strict=True)
        }
        self.test_size = len(sample)
        say("measuring the adapter before training")
        try:
            self.server = Server(
                plan,
                self.space,
                start,
                MemoryTransport(clients),
                self._journal,
                evaluate=(lambda vector: self._trainer.evaluate(vector, sample)) if len(sample) else None,
                watch=watch,
            )
        except ValueError as error:
            raise ConfigError(f"codec or broadcast does not fit the adapter: {error}") from None

    def run(self) -> Iterator[dict[str, Any]]:
        """The rounds that are left, each yielded once it is committed; then the adapter is saved.

        Raises:
            RunError: the run cannot go on; what was committed stays, and the run can be resumed.
        """
        for metrics in self.server.run():
            self._write_metrics()
            yield metrics
        self.save()
        report.write(self.folder)

    def measure(self) -> Mapping[str, float]:
        """Loss and accuracy of the global adapter on all held-out examples, not `data.test_examples` of them."""
        return self._trainer.evaluate(self.server.state.vector, self._test)

    def save(self) -> Path:
        """Write the global adapter in PEFT's format; returns its folder."""
        folder = self.folder / "adapter"
        self._trainer.adapted.adapter(self.server.state.vector).save(folder)
        if self.labels:
            write_durably(folder / "labels.json", json.dumps(list(self.labels), indent=1).encode())
        write_durably(folder / "README.md", self._card().encode())
        return folder

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
            "sites": {
                site.name: {"examples": site.size, "labels": sum(n > 0 for n in site.label_counts)}
                for site in self.sites
            },
            "before": dict(self.server.before()),
        }

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

    Raises:
        ConfigError: the experiment, its model or its data cannot be used.
        JournalError: the folder is of another run, or in use.
        RunError: the run cannot go on.
    """
    if not isinstance(experiment, Experiment):
        experiment = config.validate(experiment or {})
    with Simulation(experiment, Path(folder)) as simulation:
        for _ in simulation.run():
            pass
        return simulation.server.history()


def make_trainer(experiment: Experiment, corpus: data.Corpus) -> FirstOrderTrainer:
    """The resident model of an experiment, with its adapter as every site draws it."""
    model, seed = experiment.model, experiment.seed
    base = load_base(model.name, model.task, corpus.labels, Stream(seed, Purpose.INIT, 1))
    peft = adapters.for_task(adapters.parse_config(experiment.peft), model.task)
    adapted = AdaptedModel(base.model, peft, base.sha256, base.name, Stream(seed, Purpose.INIT, 2))
    return FirstOrderTrainer(base, adapted, model.task, model.max_length, model.device, model.dtype)


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


def _named(summaries: Sequence[data.SiteSummary]) -> list[Site]:
    width = len(str(len(summaries)))
    return [Site(f"site-{i:0{width}}", s.size, s.label_counts) for i, s in enumerate(summaries, 1)]


def _subset(examples: tuple[data.Example, ...], experiment: Experiment) -> tuple[data.Example, ...]:
    wanted = experiment.data.test_examples
    if not wanted or wanted >= len(examples):
        return examples
    chosen = sorted(Stream(experiment.seed, Purpose.SPLIT, part=1).permutation(len(examples))[:wanted].tolist())
    return tuple(examples[i] for i in chosen)
