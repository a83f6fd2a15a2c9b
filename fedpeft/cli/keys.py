"""`fedpeft keys`: who may take part."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedpeft import keys
from fedpeft.cli.application import app
from fedpeft.cli.console import answered, out, say
from fedpeft.errors import IdentityError

_SOON_DAYS = 30
_Folder = Annotated[Path, typer.Option("--keys", metavar="FOLDER", help="Folder of this end's keys.")]
_Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST", help="A DNS name or address by which sites reach the server; repeatable."),
]

commands = typer.Typer(help="Keys, certificates and the roster of sites.", no_args_is_help=True)
app.add_typer(commands, name="keys")


@commands.command()
def init(
    host: _Hosts = None,
    days: Annotated[int, typer.Option(help="Days that the server's certificate holds.")] = keys.SERVER_DAYS,
    folder: _Folder = Path("keys"),
) -> None:
    """At the coordinator: make an authority, the server's certificate and an empty roster."""
    with answered():
        keys.init(folder, host or [], days)
        say(f"made in {folder}: an authority, a certificate for {', '.join(host or [])} and an empty roster")
        say(f"the server's certificate holds until {_day(keys.expires(folder / 'server.crt'))}")
        say(f"the authority's fingerprint is {keys.fingerprint(folder / 'ca.crt')}")
        say("ca.key and server.key never leave this machine; keep a backup that nobody else can read")
        say(f"next: each site runs `fedpeft keys site NAME` and sends NAME.csr; {_run('sign NAME.csr', folder)} here")


@commands.command()
def server(
    host: _Hosts = None,
    days: Annotated[int, typer.Option(help="Days that the certificate holds.")] = keys.SERVER_DAYS,
    folder: _Folder = Path("keys"),
) -> None:
    """At the coordinator: renew the server's certificate, for the same hosts where none are named."""
    with answered():
        keys.renew_server(folder, host or [], days)
        say(f"{folder / 'server.crt'} holds until {_day(keys.expires(folder / 'server.crt'))}")
        say("next: nothing; a running server uses it from the next connection on")


@commands.command()
def site(
    name: Annotated[str, typer.Argument(help="The site's id: a-z, 0-9, dot, dash and underscore.")],
    renew: Annotated[bool, typer.Option("--renew", help="Ask again with the key that is there.")] = False,
    folder: _Folder = Path("keys"),
) -> None:
    """At a site: make a private key, which stays here, and a request for the coordinator."""
    with answered():
        request = keys.request(folder, name, renew=renew)
        say(f"{folder / 'site.key'} never leaves this machine")
        say(f"its fingerprint is {keys.requested(request)[1]}")
        say(f"next: send {request} to the coordinator, and tell the fingerprint by another way, such as the telephone")


@commands.command()
def sign(
    request: Annotated[Path, typer.Argument(help="NAME.csr, as the site sent it.")],
    fingerprint: Annotated[
        str | None, typer.Option(help="What the site says its fingerprint is; another is refused.")
    ] = None,
    days: Annotated[int, typer.Option(help="Days that the certificate holds.")] = keys.SITE_DAYS,
    folder: _Folder = Path("keys"),
) -> None:
    """At the coordinator: put a site on the roster, or renew its certificate."""
    with answered():
        name, own = keys.requested(request)
        if fingerprint is not None and fingerprint.strip().lower() != own:
            raise IdentityError(
                f"{request}: its fingerprint is {own}, the site says {fingerprint}; ask for the right file"
            )
        path = keys.sign(folder, request, days)
        say(f"{name} is on the roster until {_day(keys.expires(path))}")
        say(f"its fingerprint is {own}")
        if fingerprint is None:
            say(f"compare it with what the site says; if it differs, {_run(f'revoke {name}', folder)} at once")
        say(f"next: send {path} and {folder / 'ca.crt'} back to the site")


@commands.command()
def install(
    certificate: Annotated[Path, typer.Argument(help="NAME.crt, as the coordinator sent it.")],
    ca: Annotated[Path, typer.Argument(help="ca.crt, as the coordinator sent it.")],
    folder: _Folder = Path("keys"),
) -> None:
    """At a site: put the certificates that the coordinator sent beside the private key."""
    with answered():
        keys.install(folder, certificate, ca)
        say(f"{folder / 'site.crt'} holds until {_day(keys.expires(folder / 'site.crt'))}")
        say(f"the authority's fingerprint is {keys.fingerprint(ca)}; compare it with what the coordinator says")
        say("next: start `fedpeft site`; one that runs already uses it from the next connection on")


@commands.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The site's id.")],
    folder: _Folder = Path("keys"),
) -> None:
    """At the coordinator: shut a site out, at once and for good."""
    with answered():
        keys.revoke(folder, name)
        say(f"{name} is shut out; a running server needs no restart")
        say(f"next: to come back it deletes its site.key, and makes a new one with `fedpeft keys site {name}`")


@commands.command("list")
def show(folder: _Folder = Path("keys")) -> None:
    """At the coordinator: the roster, and what expires when."""
    with answered():
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("site", "expires", "fingerprint"):
            table.add_column(column, no_wrap=column != "fingerprint", overflow="fold")
        for name, member in keys.roster(folder).items():
            table.add_row(Text(name), _until(member.not_after), member.fingerprint)
        out.print(table)
        for name in ("server.crt", "ca.crt"):
            out.print(Text.assemble(f"{name} expires ", _until(keys.expires(folder / name))))


def _run(command: str, folder: Path) -> str:
    return f"`fedpeft keys {command}{'' if folder == Path('keys') else f' --keys {folder}'}`"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _until(moment: datetime) -> Text:
    left = (moment - datetime.now(UTC)).days
    return Text(f"{_day(moment)}, {'expired' if left < 0 else f'{left} days'}", "red" if left < _SOON_DAYS else "")
