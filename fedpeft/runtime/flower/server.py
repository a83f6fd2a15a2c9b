"""Flower's ServerApp: fedpeft's round loop over a Flower run."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpeft.runtime.flower.settings import Config, chosen

if TYPE_CHECKING:
    from fedpeft.federation import Event

_LOG = logging.getLogger("flwr")  # what `flwr log` shows


def server_app(config: Config = None, folder: Path | None = None) -> ServerApp:
    """The ServerApp of an experiment; started again with the same folder, it takes the run up where it stopped.

    Args:
        config: file of a YAML, the dictionary that it holds, an experiment, or None for the demo.
        folder: of the run; None: as the run's config says.
    """
    app = ServerApp()
    app.main()(partial(_main, config, folder))
    return app


def _main(config: Config, folder: Path | None, grid: Grid, context: Context) -> None:
    from fedpeft.run import Run
    from fedpeft.runtime.flower.transport import FlowerTransport

    experiment, where = chosen(config, folder, context)
    transport = FlowerTransport(grid, experiment.plan().needed(experiment.sites), _tell)
    with Run(experiment, where, lambda prepared, folder: transport, _LOG.info, _tell) as run:
        for _ in run.run():
            pass
    _LOG.info("adapter in %s", where / "adapter")


def _tell(event: "Event") -> None:
    from fedpeft.federation import Happening
    from fedpeft.watching.words import one_line

    facts = event.facts
    match event.kind:
        case Happening.COMMITTED:
            scores = " ".join(f"{name} {facts[name]:.4g}" for name in ("loss", "accuracy") if facts.get(name))
            _LOG.info("round %s: %s counted, %s; %s bytes up", event.round, facts["counted"], scores, facts["up_bytes"])
        case Happening.CONNECTED | Happening.DISCONNECTED:
            _LOG.info("%s %s", one_line(event.node), event.kind)
        case Happening.REJECTED | Happening.REFUSED | Happening.ALARM | Happening.FAILED:
            _LOG.warning("%s %s: %s", one_line(event.node), event.kind, one_line(facts.get("why", "")))
