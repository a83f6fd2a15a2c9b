"""An experiment: one YAML, checked key by key."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedpeft import adapters, codecs, data, expressions, strategies
from fedpeft.errors import ConfigError
from fedpeft.federation import Plan, ServerOptimizer
from fedpeft.training import Settings
from fedpeft.training.models import MINILM


def _expression(parse: Callable[[str], object]) -> BeforeValidator:
    def check(value: object) -> object:
        """An object of the kind stands for its own expression."""
        text = repr(value) if isinstance(value, _EXPRESSED) else value
        if isinstance(text, str):
            try:
                parse(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return text

    return BeforeValidator(check)


_EXPRESSED = (codecs.Codec, codecs.ErrorFeedback, strategies.Strategy, data.Source, data.Partition)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The base model.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        task: what it is fine-tuned for.
        max_length: tokens that an example is cut to.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the frozen base and of activations; the adapter stays in float32.
        threads: of torch, on the CPU.
    """

    name: str = MINILM
    task: Literal["sequence-classification", "causal-lm"] = "sequence-classification"
    max_length: int = Field(48, ge=2)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1)


class DataSection(_Section):
    """Where examples come from, and how sites share them.

    Args:
        source: expression of a `fedpeft.data` source; null for a server that has none and measures nothing.
        labels: names of the classes in order, where the source does not say or does not have them all.
        partition: expression of a `fedpeft.data` partition, by which simulated sites share the source.
        test_examples: held-out examples that each round is measured on; 0 for all.
    """

    source: Annotated[str | None, _expression(lambda text: data.parse_source(text, imports=True))] = (
        "StdlibDocs(modules=24, per_module=120)"
    )
    labels: tuple[str, ...] = ()
    partition: Annotated[str, _expression(lambda text: data.parse_partition(text, imports=True))] = (
        "Dirichlet(alpha=0.5)"
    )
    test_examples: int = Field(0, ge=0)


class TrainingSection(_Section):
    """How a site trains in a round: `fedpeft.training.Settings`, and the learning rate's schedule over rounds."""

    local_steps: int = Field(8, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, ge=0)
    labels: Literal["all", "own"] = "own"
    schedule: Literal["constant", "cosine", "linear"] = "cosine"


class Experiment(_Section):
    """One experiment; the defaults are the demo.

    Values that look like calls are expressions; a dotted path in one of them names a class of your own.

    Args:
        name: of the run's folder.
        seed: of all randomness.
        sites: how many share the data.
        rounds: in all.
        cohort: sites asked each round; 0 for all.
        quorum: fraction of the cohort that a round needs, in (0, 1].
        buffer: 0: a round waits for all who are asked; K: it closes with K updates, whichever come first, and an
            update that answers an older round counts for less.
        deadline_s: seconds that a round waits for replies.
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
    rounds: int = Field(12, ge=1)
    cohort: int = Field(0, ge=0)
    quorum: float = Field(1.0, gt=0, le=1)
    buffer: int = Field(0, ge=0)
    deadline_s: float = Field(3600.0, gt=0)
    largest_norm: float = Field(1e4, gt=0)
    largest_weight: float = Field(1e9, gt=0)
    model: ModelSection = ModelSection()
    peft: Annotated[str, _expression(adapters.parse_config)] = (
        "LoraConfig(r=8, lora_alpha=16, target_modules=['query', 'value'])"
    )
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    codec: Annotated[str, _expression(lambda text: codecs.parse(text, imports=True))] = (
        "ErrorFeedback(Ternary(density=0.2, scale='norm'))"
    )
    broadcast: Annotated[str, _expression(lambda text: codecs.parse(text, imports=True))] = "Uniform(bits=4)"
    strategy: Annotated[str, _expression(lambda text: strategies.parse(text, imports=True))] = "Mean()"
    server_optimizer: Annotated[str, _expression(ServerOptimizer)] = "SGD(lr=1.0)"

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.cohort > self.sites:
            raise ValueError(f"cohort: expected at most the {self.sites} sites, got {self.cohort}")
        if self.buffer > self.sites:
            raise ValueError(f"buffer: expected at most the {self.sites} sites, got {self.buffer}")
        if isinstance(codecs.parse(self.broadcast, imports=True), codecs.ErrorFeedback):
            raise ValueError(
                "broadcast: takes a codec without ErrorFeedback; the server carries its losses over itself"
            )
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
            settings=Settings(
                training.local_steps,
                training.batch_size,
                training.learning_rate,
                training.weight_decay,
                training.clip_norm,
                training.labels,
            ),
            schedule=training.schedule,
            cohort=self.cohort,
            quorum=self.quorum,
            buffer=self.buffer,
            deadline_s=self.deadline_s,
            largest_norm=self.largest_norm,
            largest_weight=self.largest_weight,
        )

    def to_yaml(self) -> str:
        """The whole experiment, defaults included."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, width=110)


def load(path: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file (None: the demo) with `key=value` overrides, `training.learning_rate=1e-3`.

    Raises:
        ConfigError: names each wrong key, what was expected, and the nearest valid spelling.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = yaml.safe_load(path.read_text()) or {}
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return validate(raw, str(path or "the experiment"))


def validate(raw: Mapping[str, Any], name: str = "the experiment") -> Experiment:
    """The experiment that keys and values describe.

    Raises:
        ConfigError: as `load`.
    """
    try:
        return Experiment.model_validate(raw)
    except pydantic.ValidationError as error:
        problems = "\n".join(f"  {_problem(problem)}" for problem in error.errors())
        raise ConfigError(f"{name} is not valid:\n{problems}") from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected key=value")
    *sections, last = key.strip().split(".")
    section: Any = Experiment
    for name in sections:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: {name!r} is a value, not a section")
        known = getattr(section, "model_fields", {}).get(name)
        section = known.annotation if known else None
    known = getattr(section, "model_fields", {}).get(last)
    raw[last] = text.strip() if known and known.annotation is str else _value(text)


def _value(text: str) -> Any:
    try:
        return float(text)  # YAML 1.1 takes 1e-3 for a string
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text.strip()


def _problem(problem: Mapping[str, Any]) -> str:
    where, kind, message = problem["loc"], problem["type"], problem["msg"].removeprefix("Value error, ")
    key = ".".join(map(str, where))
    if kind == "extra_forbidden":
        section: Any = Experiment
        for part in where[:-1]:
            section = section.model_fields[part].annotation
        return f"{key}: there is no such key; {expressions.nearest(str(where[-1]), section.model_fields)}"
    came = problem.get("input")
    shown = "" if isinstance(came, dict) or not key else f", got {came!r}"
    return f"{key}: {message}{shown}" if key else message
