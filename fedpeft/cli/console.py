"""Where the commands print, and how they report what came wrong from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from fedpeft.errors import FedpeftError, IdentityError, StoppedError

out = Console(soft_wrap=True)
err = Console(stderr=True)


@contextmanager
def reported(stopped: str = "stopped") -> Iterator[None]:
    """What came wrong from outside is one message and exit code 1; a defect of our own keeps its traceback.

    StoppedError is the command's own affair.

    Args:
        stopped: what to say after Ctrl-C.
    """
    try:
        yield
    except StoppedError:
        raise
    except (FedpeftError, OSError) as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print(stopped, style="yellow", markup=False)
        raise typer.Exit(130) from None


@contextmanager
def answered() -> Iterator[None]:
    """As `reported`; a wrong argument is one of the command's, and a file that cannot be used is named."""
    with reported():
        try:
            yield
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        except OSError as error:
            raise IdentityError(f"{error.filename}: {error.strerror}") from None


def say(text: str) -> None:
    """Print a text as it is."""
    out.print(text, markup=False, highlight=False)


def warn(text: str) -> None:
    """Print what people should know."""
    err.print(text, style="red", markup=False, highlight=False)


def size(n: float) -> str:
    """A number of bytes, short enough for a table."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"
