"""The command line: `fedpeft simulate` and `fedpeft inspect`."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedpeft.errors import FedpeftError

if TYPE_CHECKING:
    from fedpeft.federation import Event
    from fedpeft.simulation import Simulation

# Threads of torch that wait for each other shall sleep: where another program holds a core, spinning costs a factor.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Federated parameter-efficient fine-tuning.", no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console(soft_wrap=True)
err = Console(stderr=True)


@app.callback()
def main() -> None:
    """Federated parameter-efficient fine-tuning."""
    sys.path.insert(0, str(Path.cwd()))  # so that a YAML's dotted paths find the user's own modules


@app.command()
def simulate(
    config: Annotated[Path | None, typer.Argument(help="An experiment's YAML; the built-in demo if left out.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-3"),
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Take up a run that stopped.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all.", min=1)] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
) -> None:
    """Run an experiment in this process: several sites, one base model, real bytes between them."""
    with _reported():
        with out.status("starting"):
            from fedpeft import simulation
            from fedpeft.config import load

            if resume is not None:
                if config is not None or settings:
                    raise typer.BadParameter("a resumed run keeps its own config; only --rounds can be changed")
                experiment, folder = simulation.resume(resume, rounds, runs)
            else:
                overrides = list(settings or []) + ([f"rounds={rounds}"] if rounds else [])
                experiment = load(config, overrides)
                folder = simulation.new_folder(runs, experiment.name)
        view = _View(experiment.rounds, experiment.cohort or experiment.sites)
        with out.status("preparing") as status:
            built = simulation.Simulation(experiment, folder, status.update, view.watch)
        with built as running:
            _introduce(running)
            began = time.monotonic()
            with view.live():
                for metrics in running.server.history():
                    view.add(metrics)
                for metrics in running.run():
                    view.add(metrics)
            _conclude(running, time.monotonic() - began)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A run, an adapter's folder, or a payload's file.")],
) -> None:
    """Show what is in a run, an adapter or a payload: slots, sizes, bits per parameter, codec, checksum."""
    with _reported():
        from fedpeft import inspection

        for table in inspection.tables(path):
            out.print(table)


@contextmanager
def _reported() -> Iterator[None]:
    """What came wrong from outside is one message and exit code 1; a defect of our own keeps its traceback."""
    try:
        yield
    except FedpeftError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("stopped; take the run up with --resume", style="yellow")
        raise typer.Exit(130) from None


class _View:
    """A table that grows by a row a round, over a progress bar that moves with every reply."""

    def __init__(self, rounds: int, cohort: int) -> None:
        self._rounds, self._cohort = rounds, cohort
        self._rows: list[Mapping[str, Any]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=out)
        self._task = self._progress.add_task("replies", total=rounds * cohort)
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw while the block runs; on no terminal, print each row as it comes."""
        if not out.is_terminal:
            yield
            return
        with Live(self._table(), console=out, refresh_per_second=4) as self._live:
            yield
            self._progress.update(self._task, visible=False)
            self._live.update(self._table(), refresh=True)

    def watch(self, event: "Event") -> None:
        """A reply came."""
        if event.kind not in ("counted", "refused"):
            return
        self._progress.advance(self._task)
        if event.kind == "refused":
            console = self._live.console if self._live else out
            console.print(f"{event.node}: {event.facts['why']}", style="yellow", markup=False)
        if self._live:
            self._live.update(self._table())

    def add(self, metrics: Mapping[str, Any]) -> None:
        """A round is committed."""
        self._rows.append(metrics)
        self._progress.update(self._task, completed=len(self._rows) * self._cohort)
        if self._live:
            self._live.update(self._table())
        elif not out.is_terminal:
            out.print("  ".join(f"{name} {text}" for name, text in _row(metrics).items()), highlight=False)

    def _table(self) -> Table:
        table = Table.grid()
        rounds = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
        shown = [_row(metrics) for metrics in self._rows[-20:]]
        for name in _row({}):
            rounds.add_column(name, justify="right")
        for row in shown:
            rounds.add_row(*row.values())
        table.add_row(rounds)
        if not self._progress.finished:
            table.add_row(self._progress)
        return table


def _row(metrics: Mapping[str, Any]) -> dict[str, str]:
    def number(name: str, pattern: str) -> str:
        return pattern.format(metrics[name]) if metrics.get(name) is not None else "-"

    counted = metrics.get("counted") or 1
    up, dense = metrics.get("up_bytes", 0), metrics.get("up_bytes_fp32", 0)
    down, down_dense = metrics.get("down_bytes", 0), metrics.get("down_bytes_fp32", 0)
    return {
        "round": number("round", "{}"),
        "loss": number("loss", "{:.3f}"),
        "accuracy": number("accuracy", "{:.3f}"),
        "up/site": _size(up / counted),
        "vs fp32": f"1/{dense / up:.1f}" if up else "-",
        "down/site": _size(down / counted),
        "vs fp32 ": f"1/{down_dense / down:.1f}" if down else "-",
        "seconds": number("round_s", "{:.1f}"),
    }


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def _introduce(running: "Simulation") -> None:
    facts, experiment = running.facts(), running.experiment
    labels = f", {facts['labels']} classes" if facts["labels"] else ""
    sizes = ", ".join(str(site["examples"]) for site in facts["sites"].values())
    out.print(f"[bold]{experiment.model.name}[/], {facts['numel']:,} trainable parameters in {facts['slots']} slots")
    out.print(f"{experiment.data.source}{labels}", markup=False)
    out.print(f"{experiment.sites} sites by {experiment.data.partition} hold {sizes} examples", markup=False)
    out.print(f"updates {experiment.codec}, broadcast {experiment.broadcast}, {experiment.strategy}", markup=False)
    if before := facts["before"]:
        scores = f"loss {before['loss']:.3f}, accuracy {before['accuracy']:.3f}"
        out.print(f"before: {scores} on {facts['test_examples']} examples that no site has\n")


def _conclude(running: "Simulation", seconds: float) -> None:
    rows = running.server.history()
    up, up_dense, down, down_dense = (
        sum(row[name] for row in rows) for name in ("up_bytes", "up_bytes_fp32", "down_bytes", "down_bytes_fp32")
    )
    if before := running.server.before():
        change = f"{before['accuracy']:.3f} -> [bold]{rows[-1]['accuracy']:.3f}[/]"
        out.print(f"\naccuracy {change} in {len(rows)} rounds, {seconds:.0f} s")
    out.print(
        f"all sites together sent {_size(up)}, 1/{up_dense / up:.1f} of fp32 LoRA, "
        f"and received {_size(down)}, 1/{down_dense / down:.1f}"
    )
    out.print(f"adapter  {running.folder / 'adapter'}\nreport   {running.folder / 'report.html'}")


if __name__ == "__main__":
    app()
