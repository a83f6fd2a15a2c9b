"""A run without a server, as all its peers have it, and one peer's own installation."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from fedpeft import adapters, codecs, data, strategies
from fedpeft.config.experiment import TrainingSection
from fedpeft.config.reading import read
from fedpeft.config.section import Section, expression
from fedpeft.errors import ConfigError
from fedpeft.federation import Plan, ServerOptimizer
from fedpeft.keys.peer import check_address, check_name
from fedpeft.training import Settings
from fedpeft.training.models import MINILM

Address = Annotated[str, AfterValidator(check_address)]
_Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class BaseSection(Section):
    """The base model, the same for all.

    Args:
        name: a folder, or a name on the Hugging Face hub; a peer may have the same weights elsewhere.
        task: what it is fine-tuned for.
        max_length: tokens that an example is cut to.
    """

    name: str = MINILM
    task: Literal["sequence-classification", "causal-lm"] = "sequence-classification"
    max_length: int = Field(48, ge=2)


class ScalarSection(Section):
    """One byte a step: `fedpeft.peers.scalar` and `fedpeft.training.zeroth_order`.

    Args:
        directions: along which the adapter moves, a power of two.
        per_segment: scalars of a segment.
        unit: length of the shortest step.
        largest: code of the longest step, in [1, 127].
        estimator: "gradient": slopes from one backward pass; "spsa": from two forward passes each.
        learning_rate: of a step along a direction. The steps of all members add up: with twice the members, or twice
            the segments that they walk at a time, take half of it.
        epsilon: how far "spsa" goes either way.
        batch_size: examples that a slope is taken on.
        directions_per_step: whose slopes are taken on one batch.
        labels: as in a federation's training.
    """

    directions: int = Field(4096, ge=1, le=1 << 24)
    per_segment: int = Field(256, ge=1, le=1 << 16)
    unit: float = Field(2.0**-16, ge=1e-30, le=1e6)
    largest: int = Field(127, ge=1, le=127)
    estimator: Literal["gradient", "spsa"] = "gradient"
    learning_rate: float = Field(20.0, gt=0)
    epsilon: float = Field(0.1, gt=0)
    batch_size: int = Field(16, ge=1)
    directions_per_step: int = Field(32, ge=1)
    labels: Literal["all", "own"] = "all"

    def settings(self) -> Settings:
        """What a walk along directions needs to know."""
        return Settings(batch_size=self.batch_size, learning_rate=self.learning_rate, labels=self.labels)


class DeltaSection(TrainingSection):
    """Local steps and a payload: how a member trains for a segment, and how all merge.

    Args:
        codec: expression of one of fedpeft's codecs, or of error feedback around one.
        strategy: expression of the rule that merges deltas.
        outer_optimizer: expression of a `torch.optim` optimizer, of the step that all take together.
        largest_norm: a delta of a larger L2 norm is refused, and a member's sum of an epoch is shortened to it.
        largest_weight: a delta of more examples is refused, and who has more counts as if it had so many. Nobody can
            see how many a member has, so this is the most that it can outweigh another by; with 1 all count alike.
    """

    codec: Annotated[str, expression(codecs.parse)] = "ErrorFeedback(Ternary(density=0.2, scale='norm'))"
    strategy: Annotated[str, expression(strategies.parse)] = "Mean()"
    outer_optimizer: Annotated[str, expression(ServerOptimizer)] = "SGD(lr=1.0)"
    largest_norm: float = Field(10.0, gt=0)
    largest_weight: float = Field(10_000, ge=1)


class GossipSection(Section):
    """Averaging among neighbours; codec, strategy, training and the largest norm are those of deltas.

    Args:
        topology: who is whose neighbour, over the members of the first roster in the order of their numbers.
        gamma: share of the difference from its neighbours that a member goes in a round; small where the codec loses
            much.
    """

    topology: Literal["complete", "ring", "random"] = "ring"
    gamma: float = Field(0.5, gt=0, le=1)


def _parse_peft(text: str) -> None:
    """Pass a config that makes PEFT load nothing that it names: no module, and no tokenizer with code of its own."""
    config = adapters.parse_config(text)
    for name in ("megatron_config", "tokenizer_kwargs"):
        if getattr(config, name, None):
            raise ConfigError(f"{text!r}: {name} is not admitted in what others send; leave it out")


class PeerRun(Section):
    """What all peers of a run have agreed on; whoever changes anything has another run.

    It comes from another machine and is read before anybody can compare its number, so its expressions name what
    fedpeft, torch and PEFT have, and nothing is imported for them.

    Args:
        name: for people.
        seed: of all randomness.
        organiser: public key of who signs rosters, hexadecimal.
        mode: what segments hold.
        model: the base model.
        base_sha256: of the base model's weights, hexadecimal.
        start_sha256: of the adapter that all begin with, hexadecimal.
        peft: expression of a config of Hugging Face PEFT.
        labels: names of the classes in order; none for a language model.
        epochs: in all; of gossip, rounds.
        segments: of a member in an epoch; of gossip, which says one in each round, it says nothing.
        patience_s: seconds that an epoch, or a round of gossip, waits for those who have not done their part.
        scalar: for mode "scalar".
        delta: for mode "delta", and in parts for "gossip".
        gossip: for mode "gossip".
    """

    name: str = Field("peers", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=-(1 << 63), lt=1 << 63)
    organiser: _Digest = ""
    mode: Literal["scalar", "delta", "gossip"] = "scalar"
    model: BaseSection = BaseSection()
    base_sha256: _Digest = ""
    start_sha256: _Digest = ""
    peft: Annotated[str, expression(_parse_peft)] = "LoraConfig(r=8, lora_alpha=16, target_modules=['query', 'value'])"
    labels: tuple[str, ...] = ()
    epochs: int = Field(12, ge=1)
    segments: int = Field(4, ge=1, le=4096)
    patience_s: float = Field(60.0, gt=0)
    scalar: ScalarSection = ScalarSection()
    delta: DeltaSection = DeltaSection()
    gossip: GossipSection = GossipSection()

    @model_validator(mode="after")
    def _fits_together(self) -> "PeerRun":
        if self.model.task == "sequence-classification" and len(self.labels) < 2:
            raise ValueError("labels: a classifier needs the names of its classes, in an order that all share")
        if self.mode != "scalar":
            self.plan()
        if self.mode == "gossip":
            _check_gossip(self.delta)
        return self

    @property
    def most_segments(self) -> int:
        """Of a member in an epoch; all rounds of gossip are one, which stays open."""
        return self.epochs if self.mode == "gossip" else self.segments

    @property
    def id(self) -> bytes:
        """SHA-256 of the whole as canonical JSON, 32 bytes."""
        told = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).digest()

    def plan(self) -> Plan:
        """The rules of deltas, and of gossip."""
        delta = self.delta
        beside = {"codec", "strategy", "outer_optimizer", "largest_norm", "largest_weight", "schedule"}
        return Plan(
            rounds=self.epochs,
            seed=self.seed,
            codec=codecs.parse(delta.codec),
            strategy=strategies.parse(delta.strategy),
            optimizer=ServerOptimizer(delta.outer_optimizer),
            settings=Settings(**delta.model_dump(exclude=beside)),
            schedule=delta.schedule,
            largest_norm=delta.largest_norm,
            largest_weight=delta.largest_weight,
        )

    def to_yaml(self) -> str:
        """The whole, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=110)


def _check_gossip(delta: DeltaSection) -> None:
    """Pass a section that asks for nothing that only those can do who merge at one place.

    Raises:
        ValueError: it does; the message says what is to be left out.
    """
    plain = DeltaSection()
    for key in ("outer_optimizer", "start", "slots", "supermask"):
        if (asked := getattr(delta, key)) != getattr(plain, key):
            raise ValueError(
                f"delta.{key}: expected {getattr(plain, key)!r}, got {asked!r}; in mode gossip everybody trains and "
                "says the whole of an adapter of its own, and no step is taken together"
            )


class OwnModel(Section):
    """Where a peer's base model lies and runs.

    Args:
        name: a folder; "": as the run says.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the frozen base and of activations.
        threads: of torch, on the CPU.
    """

    name: str = ""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1)


class OwnData(Section):
    """A peer's examples: the expression of a `fedpeft.data` source, drawn from the run's seed."""

    source: Annotated[str, expression(lambda text: data.parse_source(text, imports=True))]


class PeerConfig(Section):
    """One peer's installation.

    Args:
        run: the run's description, as the organiser sent it.
        roster: the newest roster, as the organiser sent it; a running peer reads it again when it changes.
        keys: folder that `fedpeft peer join` made.
        folder: what the peer must not lose.
        listen: "host:port"; null for a peer that only dials.
        address: "host:port" where others reach it, if not where it listens.
        peers: where some members are, by name; tried before the addresses on the roster.
        model: the base model here.
        data: the peer's examples.
        start: folder of the adapter that the run begins with, where the organiser sent one; null: it is drawn.
        every_s: seconds between two exchanges with a member drawn at random.
        fanout: how many members are given at once what is new here.
        deadline_s: seconds that a call may take, and more the more it carries.
        keepalive_s: seconds of silence after which another is asked whether it lives.
        stay_s: seconds that others can ask after the last epoch.
        test_examples: held-out examples that the adapter is measured on after an epoch; 0: it is not.
    """

    run: Path = Path("run.yaml")
    roster: Path = Path("roster.json")
    keys: Path = Path("keys")
    folder: Path = Path("peer")
    listen: str | None = Field("0.0.0.0:9444", pattern=r"^[^:\s]+:\d+$|^\[[0-9a-fA-F:]+\]:\d+$")
    address: Address | Literal[""] = ""
    peers: dict[Annotated[str, AfterValidator(check_name)], Address] = Field(default_factory=dict)
    model: OwnModel = OwnModel()
    data: OwnData
    start: Path | None = None
    every_s: float = Field(5.0, gt=0)
    fanout: int = Field(4, ge=1)
    deadline_s: float = Field(10.0, gt=0, le=60)
    keepalive_s: float = Field(20.0, ge=1)
    stay_s: float = Field(600.0, ge=0)
    test_examples: int = Field(200, ge=0)


def load_peer(path: Path, overrides: Sequence[str] = ()) -> PeerConfig:
    """The installation that a YAML file describes, with `key=value` overrides.

    Raises:
        ConfigError: names each wrong key, what was expected, and the nearest valid spelling.
    """
    return read(PeerConfig, path, overrides)


def load_run(path: Path | None, overrides: Sequence[str] = (), *, begun: bool = True) -> PeerRun:
    """The run that a YAML file describes.

    Args:
        path: of the file; None: the defaults.
        overrides: `key=value`.
        begun: an organiser has made it; else what only an organiser knows may be missing.

    Raises:
        ConfigError: as `load_peer`.
    """
    run = read(PeerRun, path, overrides)
    if begun and not (run.organiser and run.base_sha256 and run.start_sha256):
        raise ConfigError(f"{path}: has no organiser or hashes; `fedpeft peer init` makes the file that peers are sent")
    return run
