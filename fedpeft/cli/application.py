"""The program that the commands join."""

import os
import sys
from pathlib import Path

import typer

# Threads of torch that wait for each other shall sleep: where another program holds a core, spinning costs a factor.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Federated parameter-efficient fine-tuning.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def main() -> None:
    """Federated parameter-efficient fine-tuning."""
    sys.path.insert(0, str(Path.cwd()))  # so that a YAML's dotted paths find the user's own modules
