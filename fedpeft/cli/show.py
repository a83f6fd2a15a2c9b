"""`fedpeft inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.application import app
from fedpeft.cli.console import out, reported


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A run, an adapter's folder, or a payload's file.")],
) -> None:
    """Show what is in a run, an adapter or a payload: slots, sizes, bits per parameter, codec, checksum."""
    with reported():
        from fedpeft import inspection

        for table in inspection.tables(path):
            out.print(table)
