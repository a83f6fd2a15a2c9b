"""`fedpeft site`."""

import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.application import app
from fedpeft.cli.console import out, reported
from fedpeft.cli.stopping import Stopping
from fedpeft.cli.surroundings import keep_memory_together, keep_to_oneself, warn_of_expiry
from fedpeft.errors import StoppedError
from fedpeft.watching.words import one_line


@app.command()
def site(
    config: Annotated[Path, typer.Option(help="The site's YAML.")] = Path("site.yaml"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: model.device=cuda")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when the run is over, instead of waiting for the next.")
    ] = False,
    socket: Annotated[
        Path | None, typer.Option(help="Serve tasks on this Unix socket, for a Flower client, instead of dialling.")
    ] = None,
) -> None:
    """Hold a base model and this site's data, and train when the server asks for what the site's policy allows.

    Exit code 0: the run is over, or the site was stopped (SIGTERM, Ctrl-C); 1: it failed, or the server refuses it.
    """
    with reported(), Stopping() as stopping:
        try:
            with out.status("starting"):
                from fedpeft.config import load_site
                from fedpeft.deployment import Installation
                from fedpeft.runtime import resident

                described = load_site(config, settings or [])
            keep_to_oneself()
            keep_memory_together()
            if socket is None:
                warn_of_expiry(described.keys / "site.crt", _say)
            with Installation(described, _say) as installed:
                _say(f"{installed.examples:,} examples, {installed.space.numel:,} trainable parameters")
                if socket is not None:
                    ended = threading.Event()
                    stopping.by(ended.set)
                    _say(f"serving tasks on {socket}")
                    resident.serve(socket, installed.client, ended)
                else:
                    dialled = installed.dial(stay=not once)
                    stopping.by(dialled.stop)
                    _say(dialled.run().value)
        except StoppedError as error:
            _say(str(error))


def _say(text: str) -> None:
    """A line with the time; what is in further lines is marked, so that no text can pass for a line of ours."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    first, *more = text.split("\n")
    lines = (f"{moment} {one_line(first)}", *(f"  | {one_line(line)}" for line in more if line))
    out.print("\n".join(lines), markup=False, highlight=False)
