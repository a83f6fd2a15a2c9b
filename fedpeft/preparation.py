"""What any role needs before a run: examples read, the base model loaded once, its adapter as all draw it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedpeft import adapters, data, kernels
from fedpeft.adapters import AdaptedModel, Adapter
from fedpeft.config import ModelSection
from fedpeft.data import Corpus, Example
from fedpeft.errors import ConfigError
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.models import load_base

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A resident model and the examples at hand.

    Args:
        trainer: holds the model.
        train: examples to learn from.
        test: examples to measure on.
        labels: name of each class, by index; empty for a language model.
    """

    trainer: FirstOrderTrainer
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]

    @property
    def space(self) -> Space:
        """Of the model's adapter."""
        return self.trainer.adapted.space

    def begin_at(self, folder: Path) -> None:
        """Begin with an adapter that was saved, and not with the one that was drawn.

        Raises:
            SpaceError: it is not of this base model or this PEFT config, or cannot be read.
        """
        saved = Adapter.load(folder, self.space.base)
        self.space.check(saved.space)
        self.trainer.adapted.write(saved.vector)


def prepare(
    model: ModelSection, peft: str, source: str | None, labels: Sequence[str], seed: int, say: Say = lambda text: None
) -> Prepared:
    """Read the data, load the base model, attach the adapter.

    Args:
        model: the base model and where it runs.
        peft: expression of a PEFT config.
        source: expression of a data source; None where there is no data.
        labels: names of the classes in the run's order; empty: as the source has them.
        seed: of what is drawn.
        say: told what is being prepared.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
    """
    torch.set_num_threads(model.threads)
    if not kernels.is_warm():
        say("compiling kernels (once on this machine)")
    kernels.warm_up()
    train: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    names = tuple(labels)
    if source is not None:
        say(f"reading {source}")
        corpus = data.parse_source(source, imports=True).load(seed)
        names = names or corpus.labels
        train, test = (_relabelled(examples, corpus, names) for examples in (corpus.train, corpus.test))
    if model.task == "sequence-classification" and not names:
        raise ConfigError("data.labels: a classifier without a labelled source needs the names of its classes")
    say(f"loading {model.name}")
    base = load_base(model.name, model.task, names, Stream(seed, Purpose.INIT, 1))
    config = adapters.for_task(adapters.parse_config(peft), model.task)
    adapted = AdaptedModel(base.model, config, base.sha256, base.name, Stream(seed, Purpose.INIT, 2))
    trainer = FirstOrderTrainer(base, adapted, model.task, model.max_length, model.device, model.dtype)
    return Prepared(trainer, train, test, names)


def _relabelled(examples: tuple[Example, ...], corpus: Corpus, names: tuple[str, ...]) -> tuple[Example, ...]:
    """The examples with class indices in the order of `names`."""
    if corpus.labels == names:
        return examples
    if unknown := sorted(set(corpus.labels) - set(names)):
        raise ConfigError(
            f"data.labels: {corpus.name} has the class {unknown[0]!r}, which is not among the {len(names)}"
        )
    index = {i: names.index(label) for i, label in enumerate(corpus.labels)}
    return tuple(e if e.label is None else replace(e, label=index[e.label]) for e in examples)
