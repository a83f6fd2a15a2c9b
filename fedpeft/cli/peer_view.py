"""How a peer looks: what it holds and whom it meets, alive on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpeft.cli.console import out, size
from fedpeft.cli.server_view import ago
from fedpeft.watching.words import one_line

if TYPE_CHECKING:
    from fedpeft.watching.peer import MemberPicture, PeerPicture

_MOST_MEMBERS = 40
_STYLES = {"running": "bold green", "finished": "bold", "stopped": "bold red"}


class PeerView:
    """The table of a peer's members, under what the peer itself holds."""

    def __init__(self) -> None:
        self._live: Live | None = None

    @contextmanager
    def live(self, picture: "Callable[[], PeerPicture]") -> Iterator[None]:
        """Draw while the block runs; on no terminal, lines are all there is."""
        if not out.is_terminal:
            yield
            return

        def drawing() -> Table:
            return drawn(picture(), "running")

        with Live(get_renderable=drawing, console=out, refresh_per_second=2) as self._live:
            yield
        self._live = None

    def say(self, text: str) -> None:
        """A line with the time; texts from outside are neither styled nor obeyed."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        console = self._live.console if self._live else out
        console.print(f"{moment} {one_line(text)}", markup=False, highlight=False)


def drawn(picture: "PeerPicture", state: str) -> Table:
    """A peer and its members."""
    table = Table.grid()
    head = Text(f"{one_line(picture.peer)} in {one_line(picture.name)}: ").append(state, style=_STYLES.get(state, ""))
    gossips = picture.mode == "gossip"
    head.append(f", {picture.round} of {picture.rounds} {'rounds done' if gossips else 'epochs closed'}")
    for name, score in (("loss", picture.loss), ("accuracy", picture.accuracy)):
        head.append(f", {name} {score:.3f}" if score is not None else "")
    table.add_row(head)
    traffic = f"; {size(picture.sent_bytes)} out, {size(picture.received_bytes)} in; roster {picture.roster}"
    table.add_row(Text((_told(picture) if gossips else _published(picture)) + traffic))
    for text, style in ((picture.waiting and f"waiting for {picture.waiting}", "yellow"), (picture.failure, "red")):
        if text and not picture.finished:
            table.add_row(Text(one_line(text), style=style))
    if picture.adapter:
        table.add_row(Text(f"adapter {picture.adapter}"))
    table.add_row(_members(picture))
    return table


def _published(picture: "PeerPicture") -> str:
    view = f", attempt {picture.view + 1} at closing" if picture.view else ""
    return f"epoch {picture.epoch}: {picture.segments} of {picture.most_segments} segments published{view}"


def _told(picture: "PeerPicture") -> str:
    far = "" if picture.distance is None else f", {picture.distance:.3g} from the mean of what all of them told last"
    return f"{picture.segments} rounds told to {len(picture.members)} neighbours{far}"


def _members(picture: "PeerPicture") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    table.add_column("member", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("segments", "out", "in", "heard"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, member in list(picture.members.items())[:_MOST_MEMBERS]:
        state, style = _state(member)
        cells = (str(member.segments), size(member.sent_bytes), size(member.received_bytes), ago(member.heard))
        table.add_row(Text(one_line(name)), Text(state, style=style), *map(Text, cells))
    if len(picture.members) > _MOST_MEMBERS:
        table.add_row(Text(f"and {len(picture.members) - _MOST_MEMBERS} more", style="dim"))
    return table


def _state(member: "MemberPicture") -> tuple[str, str]:
    if member.barred:
        return "barred", "bold red"
    if member.reached:
        return "reached", "green"
    if member.heard is not None:
        return "calls" if not member.address else "away", "" if not member.address else "red"
    return "not met", "dim"
