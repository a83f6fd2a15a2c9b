"""`fedpeft status`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fedpeft.cli.application import app
from fedpeft.cli.console import out, reported
from fedpeft.cli.server_view import ago, sites_table
from fedpeft.errors import JournalError
from fedpeft.watching import picture
from fedpeft.watching.picture import Picture, State
from fedpeft.watching.words import one_line

_STOPPED = 3
_STYLES: dict[State, str] = {"running": "bold green", "finished": "bold", "stopped": "bold red"}


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(help="A run's folder or name; the newest one if left out.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a server's run stands; exit code 0: it runs or is finished, 3: it stopped, 1: there is no such run."""
    with reported():
        seen = picture.read(_folder(run, runs))
    state = seen.state()
    if as_json:
        typer.echo(json.dumps({"state": state} | seen.model_dump(mode="json"), indent=1))
    else:
        _print(seen, state)
    raise typer.Exit(_STOPPED if state == "stopped" else 0)


def _folder(run: str | None, runs: Path) -> Path:
    """The folder of a run.

    Raises:
        JournalError: there is none.
    """
    if run is not None:
        folders = [path for path in (Path(run), runs / run) if path.is_dir()]
        if not folders:
            raise JournalError(f"{run!r} is no run: expected a run's folder or the name of one in {runs}/")
        return next((folder for folder in folders if (folder / picture.NAME).exists()), folders[-1])
    paths = list(runs.glob(f"*/{picture.NAME}"))
    if not paths:
        raise JournalError(f"{runs}/ holds no run of a server; name a run's folder, or where runs are with --runs")
    return max(paths, key=lambda path: path.stat().st_mtime).parent


def _print(seen: Picture, state: State) -> None:
    line = Text(f"{one_line(seen.name)}: ").append(state, style=_STYLES[state])
    line.append(f", round {seen.round} of {seen.rounds}")
    for name, score in (("loss", seen.loss), ("accuracy", seen.accuracy)):
        line.append(f", {name} {score:.3f}" if score is not None else "")
    out.print(line)
    process = f"process {seen.pid} on {one_line(seen.host)}, started {ago(seen.started)}, heard {ago(seen.updated)}"
    out.print(process, style="dim", markup=False, highlight=False)
    if seen.waiting and state == "running":
        out.print(f"waiting: {seen.waiting}", style="yellow", markup=False, highlight=False)
    if seen.failure:
        out.print(f"last failure: {one_line(seen.failure)}", style="yellow", markup=False, highlight=False)
    out.print(sites_table(seen.sites))
    for name, site in sorted(seen.sites.items()):
        if site.refusal:
            text = f"{one_line(name)} was refused last: {one_line(site.refusal)}"
            out.print(text, style="yellow", markup=False, highlight=False)
