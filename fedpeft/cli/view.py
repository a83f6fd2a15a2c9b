"""The table of a run's rounds, as it grows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

from fedpeft.cli.console import out, size
from fedpeft.watching.words import one_line

if TYPE_CHECKING:
    from fedpeft.federation import Event


class View:
    """A table that grows by a row a round, over a progress bar that moves with every reply.

    Args:
        rounds: of the whole run.
        cohort: replies that a round waits for.
    """

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
        """A reply came, or something is wrong."""
        if event.kind not in ("counted", "refused", "alarm"):
            return
        if event.kind != "alarm":
            self._progress.advance(self._task)
        if event.kind != "counted":
            console = self._live.console if self._live else out
            why = one_line(f"{event.node or 'server'}: {event.facts['why']}", 2000)
            console.print(why, style="red" if event.kind == "alarm" else "yellow", markup=False)
        if self._live:
            self._live.update(self._table())

    def add(self, metrics: Mapping[str, Any]) -> None:
        """A round is committed."""
        self._rows.append(metrics)
        self._progress.update(self._task, completed=len(self._rows) * self._cohort)
        if self._live:
            self._live.update(self._table())
        elif not out.is_terminal:
            print_round(metrics)

    def _table(self) -> Table:
        table = Table.grid()
        table.add_row(rounds_table(self._rows))
        if not self._progress.finished:
            table.add_row(self._progress)
        return table


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The last of a run's rounds, a row each."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    for name in _row({}):
        table.add_column(name, justify="right")
    for metrics in rows[-20:]:
        table.add_row(*_row(metrics).values())
    return table


def print_round(metrics: Mapping[str, Any]) -> None:
    """A round on a line, where there is no terminal to draw on."""
    out.print("  ".join(f"{name} {text}" for name, text in _row(metrics).items()), highlight=False)


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
        "up/site": size(up / counted),
        "vs fp32": f"1/{dense / up:.1f}" if up else "-",
        "down/site": size(down / counted),
        "vs fp32 ": f"1/{down_dense / down:.1f}" if down else "-",
        "seconds": number("round_s", "{:.1f}"),
    }
