"""An experiment: one YAML that says everything of a run."""

from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import Field

from fedpeft import adapters, codecs, data, strategies
from fedpeft.config.section import ModelSection, Section, expression
from fedpeft.federation import Plan, ServerOptimizer
from fedpeft.training import Settings


class DataSection(Section):
    """Where examples come from, and how sites share them.

    Args:
        source: expression of a `fedpeft.data` source; null for a server that has none and measures nothing.
        labels: names of the classes in order, where the source does not say or does not have them all.
        partition: expression of a `fedpeft.data` partition, by which simulated sites share the source.
        held_out: share of its examples that a simulated site keeps back, to measure the adapter on that it has trained.
        test_examples: held-out examples that each round is measured on; 0 for all.
    """

    source: Annotated[str | None, expression(lambda text: data.parse_source(text, imports=True))] = (
        "StdlibDocs(modules=24, per_module=120)"
    )
    labels: tuple[str, ...] = ()
    partition: Annotated[str, expression(lambda text: data.parse_partition(text, imports=True))] = (
        "Dirichlet(alpha=0.5)"
    )
    held_out: float = Field(0.0, ge=0, lt=1)
    test_examples: int = Field(0, ge=0)


class TrainingSection(Section):
    """How a site trains in a round: `fedpeft.training.Settings`, and the learning rate's schedule over rounds."""

    local_steps: int = Field(8, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, ge=0)
    labels: Literal["all", "own"] = "own"
    calibration: float = Field(0.0, ge=0)
    start: Literal["global", "own"] = "global"
    supermask: float = Field(0.0, ge=0, le=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    proximal: float = Field(0.0, ge=0)
    slots: Literal["all", "carried"] = "all"
    schedule: Literal["constant", "cosine", "linear"] = "cosine"


class Experiment(Section):
    """One experiment; the defaults are the demo.

    Values that look like calls are expressions; a dotted path in one of them names a class of your own.

    Args:
        name: of the run's folder.
        seed: of all randomness.
        sites: how many share the data.
        ranks: of each simulated site, where sites train LoRA of different ranks: how many components of each product it
            trains, the first ones; 0 for all. A deployed site says its own.
        rounds: in all.
        cohort: sites asked each round; 0 for all.
        quorum: fraction of the cohort (of the sites, where there is none) that a round needs, in (0, 1].
        buffer: 0: a round waits for all who are asked; K: it closes with K updates, whichever come first, and an
            update that answers an older round counts for less.
        deadline_s: seconds that a round waits for replies.
        root: the site whose data the server trusts, for a strategy that goes by its update (`FLTrust`); "" for none.
        largest_norm: an update of a larger L2 norm is refused.
        largest_weight: an update of more examples is refused.
        peft: expression of a config of Hugging Face PEFT.
        codec: expression of a codec, or of error feedback around one, for the sites' updates.
        broadcast: expression of a codec for the steps of the global adapter.
        strategy: expression of the rule that merges updates.
        server_optimizer: expression of a `torch.optim` optimizer.
    """

    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63)
    sites: int = Field(6, ge=1)
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    rounds: int = Field(12, ge=1)
    cohort: int = Field(0, ge=0)
    quorum: float = Field(1.0, gt=0, le=1)
    buffer: int = Field(0, ge=0)
    deadline_s: float = Field(3600.0, gt=0, le=1e8)
    root: str = ""
    largest_norm: float = Field(1e4, gt=0)
    largest_weight: float = Field(1e7, gt=0)
    model: ModelSection = ModelSection()
    peft: Annotated[str, expression(adapters.parse_config)] = (
        "LoraConfig(r=8, lora_alpha=16, target_modules=['query', 'value'])"
    )
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    codec: Annotated[str, expression(lambda text: codecs.parse(text, imports=True))] = (
        "ErrorFeedback(Ternary(density=0.2, scale='norm'))"
    )
    broadcast: Annotated[str, expression(lambda text: codecs.parse(text, imports=True))] = "Uniform(bits=4)"
    strategy: Annotated[str, expression(lambda text: strategies.parse(text, imports=True))] = "SeenMean()"
    server_optimizer: Annotated[str, expression(ServerOptimizer)] = "SGD(lr=1.0)"

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.cohort > self.sites:
            raise ValueError(f"cohort: expected at most the {self.sites} sites, got {self.cohort}")
        if self.ranks and len(self.ranks) != self.sites:
            raise ValueError(f"ranks: expected one for each of the {self.sites} sites, got {len(self.ranks)}")
        if self.buffer > (self.cohort or self.sites):
            raise ValueError(f"buffer: expected at most the {self.cohort or self.sites} asked, got {self.buffer}")
        if isinstance(codecs.parse(self.broadcast, imports=True), codecs.ErrorFeedback):
            raise ValueError(
                "broadcast: takes a codec without ErrorFeedback; the server carries its losses over itself"
            )
        feedback = isinstance(codecs.parse(self.codec, imports=True), codecs.ErrorFeedback)
        if self.training.start == "own" and not feedback:
            raise ValueError("training.start: own adds what ErrorFeedback(...) has kept, and the codec has none")
        return self

    def plan(self) -> Plan:
        """The rules of the run that it describes."""
        broadcast = codecs.parse(self.broadcast, imports=True)
        training = self.training
        return Plan(
            rounds=self.rounds,
            seed=self.seed,
            codec=codecs.parse(self.codec, imports=True),
            broadcast=broadcast if isinstance(broadcast, codecs.Codec) else codecs.Identity(),
            strategy=strategies.parse(self.strategy, imports=True),
            optimizer=ServerOptimizer(self.server_optimizer),
            settings=Settings(**training.model_dump(exclude={"schedule"})),
            schedule=training.schedule,
            sites=self.sites,
            cohort=self.cohort,
            quorum=self.quorum,
            buffer=self.buffer,
            deadline_s=self.deadline_s,
            root=self.root,
            largest_norm=self.largest_norm,
            largest_weight=self.largest_weight,
        )

    def to_yaml(self) -> str:
        """The whole experiment, defaults included."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, width=110)
