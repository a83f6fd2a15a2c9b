"""A simulated site wherever Flower runs it: the base model stays in the process, the site's state in the folder."""

import fcntl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

from fedpeft.config import Experiment
from fedpeft.data import SiteIndices
from fedpeft.federation import Client
from fedpeft.preparation import Prepared, prepare
from fedpeft.runtime.flower.transport import failure
from fedpeft.simulation import client, partition, site_name

_LONGEST_TRACE = 30_000


def answer(experiment: Experiment, folder: Path, index: int, request: bytes) -> bytes:
    """The reply of one site to a task; what fails on the way to the site is told as the site's own failure.

    Args:
        experiment: of the run.
        folder: of the run.
        index: of the site, from 0.
        request: the bytes of the task.
    """
    try:
        with _alone(folder / "sites" / f"{site_name(index, experiment.sites)}.lock"):
            return _client(experiment, folder, index)(request)
    except Exception as error:
        return failure(request, f"{type(error).__name__}: {error}", traceback.format_exc()[-_LONGEST_TRACE:])


@lru_cache(maxsize=1)
def _resident(experiment: Experiment) -> tuple[Prepared, SiteIndices]:
    source = experiment.data
    prepared = prepare(experiment.model, experiment.peft, source.source, source.labels, experiment.seed)
    return prepared, partition(experiment, prepared)


@cache
def _client(experiment: Experiment, folder: Path, index: int) -> Client:
    prepared, split = _resident(experiment)
    return client(experiment, prepared, split, index, folder)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Flower cannot take a task back: a site may still be at work on an old one elsewhere when the next comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
