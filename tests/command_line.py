"""Commands as a user types them, in this process."""

import typer
from typer.testing import CliRunner


def type_in(commands: typer.Typer, *words: object, code: int = 0) -> str:
    """Run a command, which ends with this exit code; what it prints, in one line."""
    done = CliRunner().invoke(commands, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())
