"""`fedpeft server`."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.application import app
from fedpeft.cli.console import out, reported, say, warn
from fedpeft.cli.server_view import ServerView
from fedpeft.cli.stopping import Stopping
from fedpeft.cli.surroundings import keep_memory_together, keep_to_oneself, warn_of_expiry
from fedpeft.errors import FedpeftError, StoppedError

if TYPE_CHECKING:
    from fedpeft.config import Experiment
    from fedpeft.federation import Event, Watch

STOPPED = 3


@app.command()
def server(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-3"),
    ] = None,
    keys: Annotated[Path, typer.Option(help="The coordinator's folder of keys: fedpeft keys init.")] = Path("keys"),
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites dial.")] = "0.0.0.0:9443",
    runs: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where Prometheus asks; '' for nowhere.")
    ] = "127.0.0.1:9464",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard event files into the run's folder.")] = False,
    keepalive_s: Annotated[
        float, typer.Option(min=1, help="Seconds of silence after which a site is asked whether it lives.")
    ] = 20.0,
) -> None:
    """Coordinate a run whose sites dial in; started again, it goes on where it stopped.

    Exit code 0: the run is finished, 3: it was stopped before (SIGTERM, Ctrl-C), 1: it failed.
    """
    try:
        with reported(), Stopping() as stopping:
            with out.status("starting"):
                from fedpeft.config import load
                from fedpeft.deployment import Deployment

                experiment = load(config, settings or [])
            keep_to_oneself()
            keep_memory_together()
            warn_of_expiry(keys / "server.crt", warn)
            with ExitStack() as stack:
                watchers = _Watchers(stack, experiment, runs / experiment.name, keys)
                running = stack.enter_context(
                    Deployment(experiment, watchers.folder, keys, listen, say, watchers.watch, keepalive_s)
                )
                stopping.by(running.stop)
                watchers.open(running.server.history(), metrics, tensorboard)
                say(f"listening on {running.transport.address}; {experiment.sites} sites are expected")
                with watchers.view.live():
                    for row in running.run():
                        watchers.view.add(row)
                say(f"adapter  {running.folder / 'adapter'}\nreport   {running.folder / 'report.html'}")
    except StoppedError as error:
        say(str(error))
        raise typer.Exit(STOPPED) from None


class _Watchers:
    """Everything that watches a server; what fails of it does not end the run.

    Files are opened once this process holds the run; what happens before is told to them then.
    """

    def __init__(self, stack: ExitStack, experiment: "Experiment", folder: Path, keys: Path) -> None:
        from fedpeft.keys import Roster
        from fedpeft.watching.guard import Guarded
        from fedpeft.watching.metrics import Metrics
        from fedpeft.watching.status import Status

        roster = Roster(keys)
        self.folder, self._stack, self._guarded = folder, stack, Guarded
        self._status = Status(folder, experiment.name, experiment.rounds, roster.members())
        self._metrics = Metrics(roster.members)
        self.view = ServerView(self._status.picture)
        self._told: list[Watch] = [Guarded(each, warn) for each in (self._status, self._metrics, self.view.watch)]
        self._early: list[Event] | None = []
        self._lock = threading.Lock()

    def watch(self, event: "Event") -> None:
        """Tell all."""
        with self._lock:
            if self._early is not None:
                self._early.append(event)
            told = list(self._told)
        for each in told:
            each(event)

    def open(self, history: "Sequence[Mapping[str, object]]", metrics: str, tensorboard: bool) -> None:
        """Open the files and the page, and begin where a resumed run stands."""
        from fedpeft.watching.log import Log

        log = Log.to_file(self.folder / "server.log.jsonl")
        self._stack.callback(log.close)
        late: list[Watch] = [self._guarded(log, warn)]
        if tensorboard:
            from fedpeft.watching.board import Board

            board = Board(self.folder / "tensorboard")
            self._stack.callback(board.close)
            board.recall(history)
            late.append(self._guarded(board, warn))
        if metrics:
            try:
                exporter = self._metrics.serve(metrics)
            except FedpeftError as error:
                warn(f"the run goes on without metrics: {error}")
            else:
                self._stack.callback(exporter.close)
                say(f"metrics at http://{metrics.rpartition(':')[0]}:{exporter.port}/metrics")
        self._status.recall(history)
        self._metrics.recall(history)
        self.view.recall(history)
        self._stack.enter_context(self._status)
        with self._lock:
            early, self._early = self._early or [], None
            self._told += late
        for event in early:
            for each in late:
                each(event)
