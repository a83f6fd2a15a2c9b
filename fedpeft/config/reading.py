"""Reading YAML files: each key is checked, and a wrong one is answered with the nearest right one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from fedpeft import expressions
from fedpeft.config.experiment import Experiment
from fedpeft.config.section import Section
from fedpeft.config.site import SiteConfig
from fedpeft.errors import ConfigError

_Kind = TypeVar("_Kind", bound=Section)


def load(path: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file (None: the demo) with `key=value` overrides, `training.learning_rate=1e-3`.

    Raises:
        ConfigError: names each wrong key, what was expected, and the nearest valid spelling.
    """
    return read(Experiment, path, overrides)


def load_site(path: Path, overrides: Sequence[str] = ()) -> SiteConfig:
    """The site of a YAML file, with overrides as for an experiment.

    Raises:
        ConfigError: as `load`.
    """
    return read(SiteConfig, path, overrides)


def validate(raw: Mapping[str, Any], name: str = "the experiment") -> Experiment:
    """The experiment that keys and values describe.

    Raises:
        ConfigError: as `load`.
    """
    return _validate(Experiment, raw, name)


def read(kind: type[_Kind], path: Path | None, overrides: Sequence[str]) -> _Kind:
    """A section of a YAML file (None: its defaults), with overrides as for an experiment.

    Raises:
        ConfigError: as `load`.
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
        _override(kind, raw, override)
    return _validate(kind, raw, str(path or "the experiment"))


def _validate(kind: type[_Kind], raw: Mapping[str, Any], name: str) -> _Kind:
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        problems = "\n".join(f"  {_problem(kind, problem)}" for problem in error.errors())
        raise ConfigError(f"{name} is not valid:\n{problems}") from None


def _override(kind: type[Section], raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected key=value")
    *sections, last = key.strip().split(".")
    section: Any = kind
    for name in sections:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: {name!r} is a value, not a section")
        known = getattr(section, "model_fields", {}).get(name)
        section = known.annotation if known else None
    known = getattr(section, "model_fields", {}).get(last)
    is_text = known is not None and known.annotation in (str, str | None) and text.strip() != "null"
    raw[last] = text.strip() if is_text else _value(text)


def _value(text: str) -> Any:
    try:
        return float(text)  # YAML 1.1 takes 1e-3 for a string
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text.strip()


def _problem(kind: type[Section], problem: Mapping[str, Any]) -> str:
    where, problem_kind, message = problem["loc"], problem["type"], problem["msg"].removeprefix("Value error, ")
    key = ".".join(map(str, where))
    if problem_kind == "extra_forbidden":
        section: Any = kind
        for part in where[:-1]:
            section = section.model_fields[part].annotation
        return f"{key}: there is no such key; {expressions.nearest(str(where[-1]), section.model_fields)}"
    came = problem.get("input")
    shown = "" if isinstance(came, dict) or not key else f", got {came!r}"
    return f"{key}: {message}{shown}" if key else message
