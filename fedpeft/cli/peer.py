"""`fedpeft peer`: fine-tune together without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.application import app
from fedpeft.cli.console import answered, out, reported, say, warn
from fedpeft.cli.stopping import Stopping
from fedpeft.cli.surroundings import keep_memory_together, keep_to_oneself, warn_of_expiry
from fedpeft.errors import JournalError, StoppedError

if TYPE_CHECKING:
    from fedpeft.peers.roster import Roster

_STOPPED = 3
_Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: scalar.learning_rate=0.5")
]
_Folder = Annotated[Path, typer.Argument(help="The organiser's folder.")]

commands = typer.Typer(help="Peers that fine-tune together, without a server.", no_args_is_help=True)
app.add_typer(commands, name="peer")


@commands.command()
def init(
    folder: _Folder,
    run: Annotated[Path | None, typer.Option(help="A description to begin with; else the defaults.")] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Adapter to go on from; else one drawn from the seed.")
    ] = None,
    settings: _Settings = None,
) -> None:
    """As the organiser: make a key that signs rosters, and the run's description."""
    with answered():
        from fedpeft import membership
        from fedpeft.config.peer import load_run

        described = membership.init(folder, load_run(run, settings or [], begun=False), say, start)
        say(f"run {described.id.hex()}")
        say(f"{folder / membership.KEY} never leaves this machine; keep a backup that nobody else can read")
        if start is not None:
            say(f"all peers begin with {start}: send it too; its place goes to `start` in each peer.yaml")
        say(f"next: send {folder / membership.RUN} to the peers, and tell them the run's number by another way;")
        say(f"they run `fedpeft peer join run.yaml NAME`; `fedpeft peer admit {folder} NAME.card ...` here")


@commands.command()
def join(
    run: Annotated[Path, typer.Argument(help="The run's description, as the organiser sent it.")],
    name: Annotated[str, typer.Argument(help="This peer's name: a-z, 0-9, dot and dash.")],
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Where others reach this peer; repeatable; none: it only dials."),
    ] = None,
    keys: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of this peer's keys.")] = Path("keys"),
) -> None:
    """As a peer: make keys, which stay here, and a card for the organiser; again, for another address."""
    with answered():
        from fedpeft.config.peer import load_run
        from fedpeft.keys import peer as own

        number = load_run(run).id
        path = own.join(keys, number, name, tuple(address or ()))
        say(f"run {number.hex()}; compare it with what the organiser says")
        say(f"{keys / 'peer.key'} and {keys / 'tls.key'} never leave this machine, and are never used on two at once")
        say(f"its fingerprint is {own.Card.load(path).fingerprint}")
        say(f"next: send {path} to the organiser, and tell the fingerprint by another way, such as the telephone")


@commands.command()
def admit(
    folder: _Folder,
    cards: Annotated[list[Path], typer.Argument(help="NAME.card, as the peers sent them.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Although those there now could not close an epoch without the new ones.")
    ] = False,
) -> None:
    """As the organiser: sign the next roster, with these peers on it."""
    with answered():
        from fedpeft import membership
        from fedpeft.keys.peer import Card

        for path in cards:
            card = Card.load(path)
            say(f"{card.name}: its fingerprint is {card.fingerprint}; compare it with what the peer says")
        _signed(folder, membership.admit(folder, cards, anyway=anyway))


@commands.command()
def dismiss(
    folder: _Folder,
    names: Annotated[list[str], typer.Argument(help="Names of peers.")],
) -> None:
    """As the organiser: sign the next roster, without these peers."""
    with answered():
        from fedpeft import membership

        _signed(folder, membership.dismiss(folder, names))


@commands.command("run")
def run_(
    config: Annotated[Path, typer.Option(help="The peer's YAML.")] = Path("peer.yaml"),
    settings: _Settings = None,
    restored: Annotated[
        bool, typer.Option("--restored", help="The folder is from a backup, or lost: sit out what may be forgotten.")
    ] = False,
    until_closed: Annotated[
        int | None,
        typer.Option(
            "--until-closed", min=1, metavar="N", help="End after N epochs, or rounds of gossip, instead of all."
        ),
    ] = None,
) -> None:
    """Take part: publish, compare, vote or gossip, and save the adapter when the last epoch is closed, or round done.

    Exit code 0: that has come, 3: it was stopped before (SIGTERM, Ctrl-C), 1: it failed.
    """
    try:
        with reported(), Stopping() as stopping:
            with out.status("starting"):
                from fedpeft.cli.peer_view import PeerView
                from fedpeft.config.peer import load_peer
                from fedpeft.peering import Peering

                described = load_peer(config, settings or [])
            keep_to_oneself()
            keep_memory_together()
            warn_of_expiry(described.keys / "tls.crt", warn)
            view = PeerView()
            with Peering(described, view.say, restored=restored, until=until_closed) as peering:
                stopping.by(peering.stop)
                where = f"listening on {peering.node.address}" if peering.node.address else "listening nowhere"
                view.say(f"{where}; {peering.examples:,} examples, {peering.space.numel:,} trainable parameters")
                with view.live(peering.picture):
                    finished = peering.run()
            if not finished:
                raise StoppedError("stopped; started again, it goes on where it was")
    except StoppedError as error:
        say(str(error))
        raise typer.Exit(_STOPPED) from None


@commands.command()
def status(
    folder: Annotated[Path, typer.Argument(help="The peer's folder, `folder` in its YAML.")] = Path("peer"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a peer stands; exit code 0: it runs or is finished, 3: it stopped, 1: there is none."""
    with reported():
        from fedpeft.watching import peer

        if not folder.is_dir():
            raise JournalError(f"{folder} is no folder; name the one that `folder` in the peer's YAML names")
        seen = peer.read(folder)
    state = seen.state()
    if as_json:
        import json

        typer.echo(json.dumps({"state": state} | seen.model_dump(mode="json"), indent=1))
    else:
        from fedpeft.cli.peer_view import drawn

        out.print(drawn(seen, state))
    raise typer.Exit(_STOPPED if state == "stopped" else 0)


def _signed(folder: Path, roster: "Roster") -> None:
    from fedpeft import membership
    from fedpeft.config.peer import load_run

    names = ", ".join(f"{member.name} ({member.number})" for member in roster.members)
    say(f"roster {roster.serial}: {names}")
    say(f"next: send {folder / membership.ROSTER} to those who are new, and to one running peer; the others hear of it")
    if roster.serial > 1 and load_run(folder / membership.RUN).mode == "gossip":
        say("this run gossips, and keeps the members of its first roster to its end: a later one changes addresses and")
        say("certificates, and neither lets anybody take part nor keeps anybody from it")
