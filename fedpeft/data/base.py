"""What a run trains on: examples, a corpus of them, where it comes from and how the sites share it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedpeft.random import Purpose, Stream

SiteIndices: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One piece of text to learn from.

    Args:
        text: the text to classify, or the completion that a language model learns.
        label: index of its class; None for language modelling.
        prompt: text that stands before `text` and is masked from the loss.
        group: the site that it belongs to in the data, if the data says so.
    """

    text: str
    label: int | None = None
    prompt: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Corpus:
    """The examples of one experiment, before they are given to sites.

    Args:
        name: for reports.
        train: what the sites share.
        test: what the global adapter is measured on; may be empty.
        labels: name of each class, by index; empty for language modelling.

    Raises:
        ValueError: there is no training example, or an example's label is not one of `labels`.
    """

    name: str
    train: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(f"corpus {self.name!r}: expected at least one training example, got none")
        allowed = set(range(len(self.labels))) if self.labels else {None}
        expected = f"in [0, {len(self.labels)})" if self.labels else "None, because there are no label names"
        for split, examples in (("train", self.train), ("test", self.test)):
            for number, example in enumerate(examples):
                if example.label not in allowed:
                    raise ValueError(
                        f"corpus {self.name!r}, {split}[{number}]: expected a label {expected}, got {example.label!r}"
                    )


class Source(ABC):
    """Where a corpus comes from; a frozen dataclass whose repr is the expression in a config."""

    @abstractmethod
    def load(self, seed: int) -> Corpus:
        """The corpus; `seed` decides what is drawn (a subset, the held-out part), never what the data is.

        Raises:
            DataError: the data is missing, empty or malformed.
        """


class Partition(ABC):
    """How sites share the training examples; a frozen dataclass whose repr is the expression in a config."""

    @abstractmethod
    def assign(self, examples: Sequence[Example], sites: int, seed: int) -> NDArray[np.int64]:
        """The site, 0 to `sites` - 1, of each example; what a new partition has to write."""

    def split(self, examples: Sequence[Example], sites: int, seed: int) -> SiteIndices:
        """Indices of each site's examples, ascending: every example at exactly one site, no site without.

        Raises:
            ValueError: there are not enough examples, labels or groups for so many sites.
        """
        if not 1 <= sites <= len(examples):
            raise ValueError(f"sites: expected 1 to {len(examples)}, the number of examples, got {sites}")
        owner = self.assign(examples, sites, seed)
        if owner.shape != (len(examples),) or owner.min() < 0 or owner.max() >= sites:
            raise ValueError(f"{self}: expected a site in [0, {sites}) for each of {len(examples)} examples")
        empty = sorted(set(range(sites)) - set(owner.tolist()))
        if empty:
            raise ValueError(f"{self}: sites {empty} of {sites} got no example; ask for fewer sites")
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner, minlength=sites))
        return tuple(tuple(part.tolist()) for part in np.split(order, ends[:-1]))


@dataclass(frozen=True)
class SiteSummary:
    """What one site holds.

    Args:
        size: number of examples.
        label_counts: how many of them have each label, by index; empty where no example has a label.
    """

    size: int
    label_counts: tuple[int, ...] = ()


def describe(examples: Sequence[Example], parts: SiteIndices) -> tuple[SiteSummary, ...]:
    """Sizes and label counts of the sites of a split.

    >>> describe([Example("a", 0), Example("b", 1), Example("c", 1)], ((0, 1), (2,)))
    (SiteSummary(size=2, label_counts=(1, 1)), SiteSummary(size=1, label_counts=(0, 1)))
    """
    classes = 1 + max((e.label for e in examples if e.label is not None), default=-1)
    summaries = []
    for part in parts:
        counts = Counter(examples[i].label for i in part)
        summaries.append(SiteSummary(len(part), tuple(counts[label] for label in range(classes))))
    return tuple(summaries)


def hold_out(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples as (train, test), with `fraction` of each label in test, to within one example.

    Systematic sampling from the examples sorted by label and shuffled within it: the total is exact even
    where every label is so rare that rounding label by label would hold out none.
    """
    rank = Stream(seed, Purpose.SPLIT).permutation(len(examples)).tolist()
    labels = [-1 if example.label is None else example.label for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (labels[i], rank[i]))
    test = {i for place, i in enumerate(order) if int((place + 1) * fraction) > int(place * fraction)}
    return (
        tuple(example for i, example in enumerate(examples) if i not in test),
        tuple(example for i, example in enumerate(examples) if i in test),
    )
