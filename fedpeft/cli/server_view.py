"""How a deployed server's run looks: its sites above its rounds, alive on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpeft.cli.console import out, size
from fedpeft.cli.view import print_round, rounds_table
from fedpeft.watching.picture import Picture, SitePicture
from fedpeft.watching.words import one_line

if TYPE_CHECKING:
    from fedpeft.federation import Event

_STYLES = {"expected": "dim", "away": "red", "training": "green", "downloading": "cyan", "uploading": "cyan"}
_MOST_SITES = 40
_NOTED = ("rejected", "refused", "alarm", "failed", "waiting")
_NOTED_IN_LINES = ("connected", "disconnected", *_NOTED)


class ServerView:
    """The table of a server's sites over that of its rounds.

    Args:
        picture: gives the picture of now, as `Status.picture` does.
    """

    def __init__(self, picture: Callable[[], Picture]) -> None:
        self._picture = picture
        self._rows: list[Mapping[str, Any]] = []
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw while the block runs; on no terminal, print what happens as it does."""
        if not out.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=out, refresh_per_second=2) as self._live:
            yield
            self._live.refresh()
        self._live = None

    def watch(self, event: "Event") -> None:
        """Say what an operator should know at once; texts from outside are neither styled nor obeyed."""
        live = self._live
        if event.kind not in (_NOTED if live else _NOTED_IN_LINES):
            return
        why = event.facts.get("why", "")
        if event.kind == "waiting":
            why = f"{event.facts['connected']} of the {event.facts['needed']} sites that a round needs are connected"
        words = (event.node, event.kind, why)
        line = "  ".join(one_line(word) for word in words if word)
        style = {"alarm": "bold red", "failed": "red", "connected": ""}.get(event.kind, "yellow")
        (live.console if live else out).print(line, style=style, markup=False, highlight=False)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin where a resumed run stands."""
        self._rows += rows

    def add(self, metrics: Mapping[str, Any]) -> None:
        """A round is committed."""
        self._rows.append(metrics)
        if self._live:
            self._live.refresh()
        elif not out.is_terminal:
            print_round(metrics)

    def _table(self) -> Table:
        picture = self._picture()
        table = Table.grid()
        table.add_row(Text(f"{picture.name}: round {picture.round} of {picture.rounds}", style="bold"))
        table.add_row(sites_table(picture.sites))
        table.add_row("")
        table.add_row(rounds_table(self._rows))
        return table


def sites_table(sites: Mapping[str, SitePicture]) -> Table:
    """A row a site; a name from outside is text, whatever it holds."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    table.add_column("site", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("round", "loss", "up", "down", "last seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, site in sorted(sites.items())[:_MOST_SITES]:
        cells = (
            str(site.round) if site.round else "-",
            f"{site.loss:.3f}" if site.loss is not None else "-",
            size(site.up_bytes),
            size(site.down_bytes),
            ago(site.last_seen),
        )
        state = Text(one_line(site.state, 20), style=_STYLES.get(site.state, ""))
        table.add_row(Text(one_line(name)), state, *map(Text, cells))
    if len(sites) > _MOST_SITES:
        table.add_row(Text(f"and {len(sites) - _MOST_SITES} more", style="dim"))
    return table


def ago(moment: float | None) -> str:
    """How long something is ago, in one unit.

    Args:
        moment: in seconds since 1970; None for never.
    """
    if moment is None:
        return "never"
    seconds = max(0.0, time.time() - moment)
    for unit, each in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 120 * each:
            return f"{seconds / each:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"
