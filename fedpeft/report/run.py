"""What a run's folder says of the run, checked."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from fedpeft.errors import JournalError

STAGES = ("train", "encode", "fold", "evaluate", "other")

_Model = TypeVar("_Model", bound=BaseModel)
_Score = Annotated[float | None, AfterValidator(lambda x: x if x is not None and math.isfinite(x) else None)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Traffic(BaseModel):
    """Bytes of whole messages."""

    up_bytes: NonNegativeInt
    down_bytes: NonNegativeInt


class Round(Traffic):
    """One line of `metrics.jsonl`; a score that is not finite counts as not measured."""

    round: PositiveInt
    loss: _Score
    accuracy: _Score
    train_loss: _Score
    learning_rate: float
    up_bytes_fp32: NonNegativeInt
    down_bytes_fp32: NonNegativeInt
    counted: NonNegativeInt
    refused: NonNegativeInt
    train_s: _Seconds
    encode_s: _Seconds
    fold_s: _Seconds
    evaluate_s: _Seconds
    round_s: _Seconds
    product_error: _Score = None
    sites: dict[str, Traffic]

    @property
    def other_s(self) -> float:
        """What the clock counted beside the named stages."""
        return max(0.0, self.round_s - self.train_s - self.encode_s - self.fold_s - self.evaluate_s)


class Site(BaseModel):
    """What a site trains on."""

    examples: NonNegativeInt
    labels: NonNegativeInt | None = None


class Named(BaseModel):
    """A model by its name."""

    name: str


class Experiment(BaseModel):
    """What was planned, as far as the page shows it."""

    rounds: PositiveInt
    model: Named
    codec: str
    broadcast: str
    strategy: str


class Facts(BaseModel):
    """`facts.json`: the run as a whole; `before` holds the scores before training."""

    name: str
    version: str
    experiment: Experiment
    numel: NonNegativeInt
    labels: NonNegativeInt
    test_examples: NonNegativeInt
    sites: dict[str, Site]
    before: dict[str, _Score]


@dataclass(frozen=True)
class Run:
    """The three files of a run; `configured_rounds` is what `config.yaml` says, before the run was taken up."""

    facts: Facts
    rounds: list[Round]
    config: str
    configured_rounds: object

    @cached_property
    def sites(self) -> dict[str, list[Traffic]]:
        """What each site sent and received in the rounds that counted it."""
        names = dict.fromkeys(self.facts.sites) | dict.fromkeys(name for row in self.rounds for name in row.sites)
        return {name: [row.sites[name] for row in self.rounds if name in row.sites] for name in names}

    @property
    def active(self) -> int:
        """Sites that took part, at least one."""
        return max(1, sum(bool(rounds) for rounds in self.sites.values()))

    def total(self, key: str) -> float:
        """A figure summed over the rounds."""
        return float(sum(getattr(row, key) for row in self.rounds))

    def measured(self, *keys: str) -> list[str]:
        """Those of the scores that some round has."""
        return [key for key in keys if any(getattr(row, key) is not None for row in self.rounds)]

    def scores(self, key: str) -> dict[int, float | None]:
        """A score by round, that before training by 0."""
        before = self.facts.before.get(key)
        return ({} if before is None else {0: before}) | {row.round: getattr(row, key) for row in self.rounds}


def read(folder: Path) -> Run:
    """A run from its folder; the run need not be finished.

    Raises:
        JournalError: `metrics.jsonl`, `facts.json` or `config.yaml` is missing or damaged; the message names it.
    """
    metrics, facts, config = (folder / name for name in ("metrics.jsonl", "facts.json", "config.yaml"))
    lines = enumerate(_text(metrics).splitlines(), 1)
    rounds = [_parse(Round, line, f"{metrics}, line {number}") for number, line in lines]
    written = _text(config)
    try:
        configured = yaml.safe_load(written)["rounds"]
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise JournalError(f"{config}: expected the YAML of an experiment: {error!r}") from None
    return Run(_parse(Facts, _text(facts), str(facts)), rounds, written, configured)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(f"{path}: expected a file that `fedpeft simulate` wrote: {error}") from None


def _parse(kind: type[_Model], text: str, where: str) -> _Model:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = "".join(f"{part}: " for part in problem["loc"])
        raise JournalError(f"{where}: {key}{problem['msg']}; resume the run to write the file anew") from None
