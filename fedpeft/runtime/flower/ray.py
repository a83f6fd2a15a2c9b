"""Flower's Ray simulation: sites work side by side in other processes, on this machine or on a Ray cluster."""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, RunError
from fedpeft.federation import Watch, unwatched
from fedpeft.run import Connect
from fedpeft.runtime.flower.client import client_app
from fedpeft.runtime.flower.transport import FlowerTransport
from fedpeft.simulation import Simulation


def simulate_on_flower(
    experiment: Experiment, folder: Path, watch: Watch = unwatched, at_once: int | None = None
) -> list[dict[str, Any]]:
    """Run an experiment to its end on Ray, or take it up where it stopped; returns the metrics of its rounds.

    Args:
        experiment: what to run.
        folder: of the run; on a cluster, on a disk that all machines share.
        watch: told of what happens.
        at_once: sites that work at the same time; None: as many as there are cores or GPUs for.

    Raises:
        ConfigError: the experiment, its model or its data cannot be used.
        JournalError: the folder is of another run, or in use.
        RunError: the run cannot go on.
    """
    history: list[dict[str, Any]] = []

    def work(connect: Connect) -> None:
        with Simulation(experiment, folder, watch=watch, connect=connect) as simulation:
            for _ in simulation.run():
                pass
            history.extend(simulation.server.history())

    on_ray(experiment, folder, work, at_once)
    return history


def on_ray(experiment: Experiment, folder: Path, work: Callable[[Connect], None], at_once: int | None = None) -> None:
    """Do work that needs the experiment's sites while Ray runs them.

    Args:
        experiment: whose sites they are.
        folder: of the run.
        work: called in a thread of its own, with what connects a simulation to the sites.
        at_once: sites that work at the same time; None: as many as there are cores or GPUs for.

    Raises:
        ConfigError: the machine cannot run a site.
        RunError: Ray failed.
        BaseException: whatever `work` raises.
    """
    told = backend(experiment, at_once)
    transports: list[FlowerTransport] = []
    failures: list[BaseException] = []

    def main(grid: Grid, context: Context) -> None:
        transports.append(FlowerTransport(grid, experiment.sites))
        try:
            work(lambda prepared, folder: transports[0])
        except BaseException as error:
            failures.append(error)

    def stop() -> None:
        for transport in transports:
            transport.stop()

    server, client = ServerApp(), client_app(experiment, folder.absolute())
    server.main()(main)
    try:
        with _quiet(), _interrupted_by(stop):
            run_simulation(server, client, experiment.sites, backend_config=told)
    except RuntimeError as error:
        raise RunError(f"Ray: {_root(error)}") from error
    finally:
        stop()
    if failures:
        raise failures[0]


@contextmanager
def _interrupted_by(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C stops the round loop, and Flower winds up once the sites at work are done; a second one kills.

    Were Flower interrupted itself, its threads would wait for ever for a Ray that is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        pressed.set()
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.is_set():
        raise KeyboardInterrupt


def backend(experiment: Experiment, at_once: int | None) -> dict[str, Any]:
    """What Ray is told of the machine and of what a site needs.

    The numbers are tokens: the machine has as many CPUs as sites may work at the same time, and a site needs one. A
    cluster has its own numbers, and there a site needs as many CPUs as it has threads.

    Args:
        experiment: of the sites.
        at_once: sites that work at the same time; None: as many as there are cores or GPUs for.

    Raises:
        ConfigError: the machine cannot run a site, or it is a cluster that decides how many work at once.
    """
    device, threads = torch.device(experiment.model.device), experiment.model.threads
    if device.index is not None:
        raise ConfigError(
            f"model.device: Ray gives each site its device; expected {device.type!r}, got {str(device)!r}"
        )
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and not gpus and "RAY_ADDRESS" not in os.environ:
        raise ConfigError("model.device: there is no GPU here; expected 'cpu', got 'cuda'")
    if "RAY_ADDRESS" in os.environ:
        if at_once is not None:
            raise ConfigError("how many sites work at once: the Ray cluster at RAY_ADDRESS decides; leave it out")
        share = float(device.type == "cuda")
        return {
            "client_resources": {"num_cpus": threads, "num_gpus": share},
            "init_args": {"log_to_driver": False},
        }
    at_once = min(experiment.sites, at_once or gpus or max(1, len(os.sched_getaffinity(0)) // threads))
    share = 1 / math.ceil(at_once / gpus) if gpus else 0.0
    return {
        "client_resources": {"num_cpus": 1, "num_gpus": share},
        "init_args": {"num_cpus": at_once, "num_gpus": gpus, "log_to_driver": False},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's log speaks of what fedpeft's own table shows, and of a deprecation that the pinned version settles."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
