"""What a Flower run is told: an experiment, the run's own settings over it, and a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flwr.app import Context

if TYPE_CHECKING:
    from fedpeft.config import Experiment

Config: TypeAlias = "Path | str | Mapping[str, Any] | Experiment | None"


def chosen(config: Config, folder: Path | None, context: Context) -> "tuple[Experiment, Path]":
    """The experiment with what `flwr run --run-config` changes in it, and the run's folder.

    Args:
        config: file of a YAML, the dictionary that it holds, an experiment, or None for the demo.
        folder: of the run; None: what the run's config says, or one of its own in `runs`.
        context: of the app; `run_config` holds `folder` and keys of the experiment, as `training.learning_rate`.

    Raises:
        ConfigError: the experiment cannot be used.
    """
    from fedpeft.config import Experiment, load, validate

    if isinstance(config, Mapping):
        experiment = validate(config)
    else:
        experiment = config if isinstance(config, Experiment) else load(None if config is None else Path(config))
    settings = dict(context.run_config)
    named = settings.pop("folder", "")
    if settings:
        raw = experiment.model_dump()
        for key, value in settings.items():
            *sections, last = key.split(".")
            section = raw
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        experiment = validate(raw, "the experiment with the settings of this run")
    path = folder or Path(str(named) or f"runs/{experiment.name}-{context.run_id}")
    return experiment, path.expanduser().absolute()
