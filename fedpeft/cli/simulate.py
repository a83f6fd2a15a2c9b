"""`fedpeft simulate`."""

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.application import app
from fedpeft.cli.console import out, reported, size
from fedpeft.cli.rehearse import rehearse
from fedpeft.cli.view import View

if TYPE_CHECKING:
    from fedpeft.config import Experiment
    from fedpeft.run import Connect
    from fedpeft.simulation import Simulation


class Topology(StrEnum):
    """Who may talk to whom, without a server."""

    COMPLETE = "complete"
    RING = "ring"
    RANDOM = "random"


class Engine(StrEnum):
    """What runs the sites."""

    MEMORY = "memory"
    FLOWER = "flower"


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
    engine: Annotated[
        Engine, typer.Option(help="memory: one site after another, here; flower: side by side, on Ray.")
    ] = Engine.MEMORY,
    at_once: Annotated[
        int | None, typer.Option("--clients-at-once", help="With flower: sites that train side by side.", min=1)
    ] = None,
    topology: Annotated[
        Topology | None, typer.Option(help="No server: the sites are peers, and these are their neighbours.")
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --topology: mode=scalar|delta|gossip, loss=0.3, split=20, ..."),
    ] = None,
) -> None:
    """Run an experiment on this machine: several sites, real bytes between them.

    With --topology there is no server; exit code 1 where peers end with different adapters.
    """
    with reported("stopped; take the run up with --resume"):
        with out.status("starting"):
            from fedpeft import simulation
            from fedpeft.config import load

            if resume is not None:
                if topology is not None:
                    raise typer.BadParameter("--topology: a run without a server begins anew; it cannot be resumed")
                if config is not None or settings:
                    raise typer.BadParameter("a resumed run keeps its own config; only --rounds can be changed")
                experiment, folder = simulation.resume(resume, rounds, runs)
            else:
                overrides = list(settings or []) + ([f"rounds={rounds}"] if rounds else [])
                experiment = load(config, overrides)
                folder = simulation.new_folder(runs, experiment.name)
        if topology is not None:
            if engine is Engine.FLOWER or at_once is not None:
                raise typer.BadParameter("--topology: peers are simulated in this process; leave the engine out")
            rehearse(experiment, [f"topology={topology}", *(peers or [])], folder)
        elif peers:
            raise typer.BadParameter("--peers says how peers talk; say --topology ring|random|complete too")
        elif engine is Engine.FLOWER:
            with out.status("importing Flower and Ray"):
                from fedpeft.runtime.flower.ray import on_ray
            on_ray(experiment, folder, partial(_follow, experiment, folder), at_once)
        elif at_once is None:
            _follow(experiment, folder)
        else:
            raise typer.BadParameter("--clients-at-once is for --engine flower; memory trains one site after another")


def _follow(experiment: "Experiment", folder: Path, connect: "Connect | None" = None) -> None:
    """Run to the end, in front of the user."""
    from fedpeft.simulation import Simulation

    view = View(experiment.rounds, experiment.cohort or experiment.sites)
    with out.status("preparing") as status:
        built = Simulation(experiment, folder, status.update, view.watch, connect)
    with built as running:
        _introduce(running)
        began = time.monotonic()
        with view.live():
            for metrics in running.server.history():
                view.add(metrics)
            for metrics in running.run():
                view.add(metrics)
        _conclude(running, time.monotonic() - began)


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
        f"all sites together sent {size(up)}, 1/{up_dense / up:.1f} of fp32 LoRA, "
        f"and received {size(down)}, 1/{down_dense / down:.1f}"
    )
    out.print(f"adapter  {running.folder / 'adapter'}\nreport   {running.folder / 'report.html'}")
