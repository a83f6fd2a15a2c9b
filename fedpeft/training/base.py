"""What a trainer is: one resident base model that works on the jobs of several sites."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.random import Stream


@dataclass(frozen=True)
class Settings:
    """How a client trains in one round.

    Args:
        local_steps: optimizer steps; 0: the adapter stays as it is.
        batch_size: examples a step.
        learning_rate: of the optimizer.
        weight_decay: of AdamW, decoupled; of SGD, beside the gradient.
        clip_norm: bound on the gradient's norm; 0 for none.
        labels: "own": a classifier's softmax runs over the labels that the site's data has, so that a site does not
            push down classes it has never seen (over all where it has a single one); "all": over all.
        start: "global": every round begins with the global adapter; "own": with what the site has not been able to send
            (the residual of error feedback) added to it, as where each site trains on from its own parameters.
        supermask: share of an adapter of fixed random weights that is used; what is trained are scores, which say which
            (`fedpeft.training.supermask`). 0: the adapter itself is trained.
        optimizer: "adamw", begun anew in each round; or "sgd", whose steps are as small as the gradient where a site
            has little to say, so that sites of different classes stay together over the softmax of all labels.
        proximal: mu of FedProx (Li et al., 2020, arXiv 1812.06127): mu / 2 ||w - start||^2 is added to the loss.
        calibration: tau of FedLC (Zhang et al., 2022, arXiv 2209.00189), 0 for none: in the softmax that is trained,
            the logit of a class of which the site has n examples is lowered by tau n^(-1/4), so that rare classes get a
            wider margin. A class that the site lacks is left out, so it goes with `labels: own`.
        slots: "all" are trained; or only those that this round's update "carried" (see the codecs `Turns` and
            `Fragments`), while the others stay as they are.

    Raises:
        ValueError: a number is out of range.
    """

    local_steps: int = 10
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    labels: Literal["all", "own"] = "all"
    start: Literal["global", "own"] = "global"
    supermask: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    proximal: float = 0.0
    calibration: float = 0.0
    slots: Literal["all", "carried"] = "all"

    def __post_init__(self) -> None:
        for name, least, most in (
            ("local_steps", 0, 100_000),
            ("batch_size", 1, 100_000),
            ("learning_rate", 0.0, 1e6),
            ("weight_decay", 0.0, 1e6),
            ("clip_norm", 0.0, 1e30),
            ("calibration", 0.0, 1e3),
            ("supermask", 0.0, 1.0),
            ("proximal", 0.0, 1e6),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [{least}, {most:g}], got {getattr(self, name)}")
        for name, known in (
            ("labels", ("all", "own")),
            ("start", ("global", "own")),
            ("optimizer", ("adamw", "sgd")),
            ("slots", ("all", "carried")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}")
        if self.calibration and self.labels != "own":
            raise ValueError("calibration leaves out classes that a site lacks; set labels: own or calibration: 0")
        if self.supermask and self.slots == "carried":
            raise ValueError("a supermask's scores are trained together; set slots: all or supermask: 0")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Examples as a model takes them.

    Args:
        tokens: token ids of each example.
        targets: a class index each, or, for a language model, token ids with -100 where no loss is taken.
        labels: the class indices that occur, sorted.
    """

    tokens: tuple[tuple[int, ...], ...]
    targets: tuple[int, ...] | tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def held(self) -> NDArray[np.int64]:
        """Of a classifier's data: how many examples of each class there are, up to the last class that occurs."""
        return np.bincount(np.array(self.targets, np.int64))


@dataclass(frozen=True, eq=False)
class Job:
    """One client's work in one round.

    Args:
        start: the adapter to begin from, shape (d,).
        data: the site's examples.
        settings: how to train.
        order: draws the order of examples.
        dropout: draws dropout masks.
        slots: names of those that are trained; None for all.
        rank: how many components of each LoRA product are trained, the first ones; 0 for all.

    Raises:
        ValueError: components of a supermask's scores are asked for.
    """

    start: Float[Tensor, " d"]
    data: Encoded
    settings: Settings
    order: Stream
    dropout: Stream
    slots: frozenset[str] | None = None
    rank: int = 0

    def __post_init__(self) -> None:
        if self.rank and self.settings.supermask:
            raise ValueError(f"a supermask's scores have no components, and a rank of {self.rank} is set; leave it out")


@dataclass(frozen=True, eq=False)
class Trained:
    """A job's result: the adapter after it, and what was measured on the way (`loss`: mean of the local steps).

    The adapter lies where it was trained, so that a codec can encode there, and only its payload is copied.
    """

    vector: Float[Tensor, " d"]
    metrics: Mapping[str, float]


class Trainer(Protocol):
    """A resident base model; results come in the order of the jobs."""

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Work on all jobs, each from its own start."""
        ...


@runtime_checkable
class Evaluating(Trainer, Protocol):
    """A trainer that can say how good an adapter is."""

    def evaluate(self, vector: Float[Tensor, " d"], data: Encoded) -> Mapping[str, float]:
        """Mean `loss` and `accuracy` on examples."""
        ...


@runtime_checkable
class Measuring(Trainer, Protocol):
    """A trainer that can say more of an adapter than its delta does (`fedpeft.strategies.statistics`)."""

    def statistics(self, job: Job, names: Sequence[str], examples: int) -> Mapping[str, Float[Tensor, " s"]]:
        """Measure statistics of an adapter on a site's data, without training.

        Args:
            job: its start is the adapter; `order` draws the examples, `dropout` whatever else is drawn.
            names: of the statistics.
            examples: on how many of the job's, at most.
        """
        ...
