import io
import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from fedpeft.adapters import Adapter
from fedpeft.cli import peer_view
from fedpeft.cli.peer import commands
from fedpeft.config.peer import PeerConfig, load_run
from fedpeft.errors import IdentityError, SpaceError
from fedpeft.keys.peer import Card
from fedpeft.membership import Rosters, check_newcomers
from fedpeft.peering import Peering
from fedpeft.peers.roster import Member, Roster
from fedpeft.peers.scalar import ScalarLedger, directions_seed
from fedpeft.watching.peer import MemberPicture, PeerPicture
from tests import tiny
from tests.chaos.program import SECONDS, Program
from tests.command_line import type_in

typed = partial(type_in, commands)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    raw = tiny.experiment(tmp_path)
    labels = f"labels=[{', '.join(sorted(tiny.COLOURS))}]"
    model = raw["model"]
    assert isinstance(model, dict)
    sets = (labels, f"model.name={model['name']}", "model.max_length=16", f"peft={raw['peft']}", "scalar.directions=64")
    typed("init", "organiser", *(word for each in sets for word in ("--set", each)))
    for name in ("a", "b", "c"):
        typed("join", "organiser/run.yaml", name, "--address", f"host-{name}:1", "--keys", name)
    return tmp_path


def config(here: Path, keys: str, organiser: str = "organiser", **more: object) -> PeerConfig:
    raw = {
        "run": f"{organiser}/run.yaml",
        "roster": f"{organiser}/roster.json",
        "keys": keys,
        "folder": "state",
        "listen": None,
        "data": {"source": f"LocalFile({str(here / 'colours.jsonl')!r}, label='label')"},
        "model": {"threads": 1},
        "every_s": 0.1,
        "stay_s": 0,
    }
    return PeerConfig.model_validate(raw | more)


def rosters(path: str = "organiser/roster.json") -> Rosters:
    run = load_run(Path("organiser/run.yaml"))
    return Rosters.load(Path(path), run.id, bytes.fromhex(run.organiser))


def cards(*names: str) -> list[str]:
    return [f"{name}/{name}.card" for name in names]


def test_an_organiser_admits_and_dismisses(here: Path) -> None:
    run = load_run(Path("organiser/run.yaml"))
    again = typed("join", "organiser/run.yaml", "a", "--address", "host-a:1", "--keys", "a")
    assert run.id.hex() in again and Card.load(Path("a/a.card")).fingerprint in again
    admitted = typed("admit", "organiser", *cards("a", "b"))
    assert "roster 1: a (1), b (2)" in admitted and Card.load(Path("b/b.card")).fingerprint in admitted
    assert rosters().first == rosters().newest and rosters().newest.members[1].addresses == ("host-b:1",)
    assert "roster 2: a (1)" in typed("dismiss", "organiser", "b")
    assert "roster 3: a (1), c (3)" in typed("admit", "organiser", *cards("c"), "--anyway")
    assert (rosters().first.serial, rosters().newest.serial) == (1, 3)
    assert "roster 4: a (1), c (3), b (4)" in typed("admit", "organiser", *cards("b"), "--anyway")
    typed("join", "organiser/run.yaml", "a", "--address", "elsewhere:2", "--keys", "a")
    assert "roster 5: a (1), c (3), b (4)" in typed("admit", "organiser", *cards("a"))
    assert rosters().newest.members[0].addresses == ("elsewhere:2",)


def test_what_an_organiser_refuses(here: Path) -> None:
    typed("admit", "organiser", *cards("a"))
    assert "is there already and is never overwritten" in typed("init", "organiser", "--set", "labels=[x, y]", code=1)
    assert "'z' is not on the roster, which has a" in typed("dismiss", "organiser", "z", code=1)
    assert "1 to 4096" in typed("dismiss", "organiser", "a", code=1)
    typed("join", "organiser/run.yaml", "a", "--keys", "other")
    assert "with another key; dismiss it first" in typed("admit", "organiser", "other/a.card", code=1)
    assert "expected a card" in typed("admit", "organiser", "nothing.card", code=1)
    assert "two of them have one key" in typed("admit", "organiser", _renamed("a", "q"), "--anyway", code=1)
    assert rosters().newest.serial == 1


def test_newcomers_that_never_start_cannot_keep_the_others_from_closing(here: Path) -> None:
    assert "roster 1" in typed("admit", "organiser", *cards("a", "b", "c")), "nobody is there yet"
    for name in ("d", "e", "f"):
        typed("join", "organiser/run.yaml", name, "--keys", name)
    refused = typed("admit", "organiser", *cards("d", "e", "f"), code=1)
    assert "d, e, f: 5 of 6 members would have to vote, more than two thirds, and 3 are there now" in refused
    assert "admit 1 at most" in refused and rosters().newest.serial == 1
    assert "roster 2: a (1), b (2), c (3), d (4)" in typed("admit", "organiser", *cards("d", "a"))
    assert "roster 3" in typed("admit", "organiser", *cards("d", "a", "b")), "they are there already"
    assert "roster 4" in typed("admit", "organiser", "--anyway", *cards("e", "f"))


@pytest.mark.parametrize("there", range(1, 13))
def test_as_many_are_admitted_as_the_others_can_do_without(there: int) -> None:
    def member(number: int) -> Member:
        return Member(number, f"peer-{number}", number.to_bytes(32, "little"))

    now = Roster(bytes(32), 1, tuple(map(member, range(1, there + 1))))
    for total in range(there, 2 * there + 2):
        following = tuple(map(member, range(1, total + 1)))
        if 3 * there > 2 * total:
            check_newcomers(now, following)
        else:
            with pytest.raises(IdentityError, match="--anyway"):
                check_newcomers(now, following)


def _renamed(name: str, other: str) -> Path:
    """Keys of one peer under another name, which it may make, and may not be admitted with."""
    import shutil

    shutil.copytree(name, other)
    Path(other, "tls.crt").unlink()
    typed("join", "organiser/run.yaml", other, "--keys", other)
    return Path(other, f"{other}.card")


def test_a_card_that_was_changed_is_refused(here: Path) -> None:
    told = json.loads(Path("a/a.card").read_text())
    theirs = json.loads(Path("b/b.card").read_text())
    changes = [
        {"name": "b"}, {"addresses": ["host:2"]}, {"key": theirs["key"]}, {"certificate": theirs["certificate"]},
        {"run": "00" * 32}, {"signature": theirs["signature"]}, {"signature": 1}, {"name": None}, {"addresses": "a"},
    ]  # fmt: skip
    for change in changes:
        Path("bad.card").write_text(json.dumps(told | change))
        with pytest.raises(IdentityError, match=r"bad.card: expected a card"):
            Card.load(Path("bad.card"))
    for text in ("", "{}", "[]", "[" * 60_000, "null", '{"run": "zz"}'):
        Path("bad.card").write_text(text)
        with pytest.raises(IdentityError, match=r"bad.card: expected a card"):
            Card.load(Path("bad.card"))
    typed("admit", "organiser", *cards("a"))


def test_a_roster_that_was_changed_is_refused(here: Path) -> None:
    typed("admit", "organiser", *cards("a", "b"))
    typed("admit", "organiser", *cards("c"), "--anyway")
    text = Path("organiser/roster.json").read_text()
    told = json.loads(text)
    for path in (
        ("rosters", 1, "serial"),
        ("rosters", 0, "members"),
        ("rosters", 1, "signature"),
        ("run",),
        ("rosters",),
    ):
        changed = json.loads(text)
        section = changed
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = {"serial": 9, "members": told["rosters"][1]["members"], "run": "11" * 32}.get(path[-1], [])
        Path("bad.json").write_text(json.dumps(changed))
        with pytest.raises(IdentityError, match=r"bad.json: expected a roster"):
            rosters("bad.json")
    for bad in ("", "{}", "[]", "null", "[" * 90_000):
        Path("bad.json").write_text(bad)
        with pytest.raises(IdentityError, match=r"bad.json: expected a roster"):
            rosters("bad.json")
    with pytest.raises(IdentityError, match="No such file"):
        rosters("none.json")


def test_a_peer_needs_the_run_s_base_and_a_place_on_the_roster(here: Path) -> None:
    typed("admit", "organiser", *cards("a"))
    with pytest.raises(IdentityError, match="does not have this peer"):
        Peering(config(here, "b"))
    other = tiny.save_bert(here / "other", seed=1)
    with pytest.raises(SpaceError, match=r"other: expected weights of SHA-256"):
        Peering(config(here, "a", model={"name": str(other), "threads": 1}))
    run = load_run(Path("organiser/run.yaml"))
    with Peering(config(here, "a")) as peering:
        ledger = peering.peer.ledger
        assert isinstance(ledger, ScalarLedger) and ledger.subspace.seed == directions_seed(run.id, run.seed)
        assert (peering.picture().number, peering.picture().peer, peering.picture().address) == (1, "a", "")


def test_a_peer_that_has_not_run_has_no_status(here: Path) -> None:
    assert "is no folder" in typed("status", "nowhere", code=1)
    assert "expected the folder of a peer that has run" in typed("status", "a", code=1)


def test_one_peer_is_a_quorum_and_shows_how_it_stands(here: Path) -> None:
    typed("admit", "organiser", *cards("a"))
    said: list[str] = []
    with Peering(config(here, "a"), said.append, until=2) as peering:
        assert peering.run()
    shown = typed("status", "state")
    assert "a in peers: finished, 2 of 2 epochs closed, loss" in shown and "accuracy" in shown
    seen = json.loads(CliRunner().invoke(commands, ["status", "state", "--json"]).output)
    assert (seen["state"], seen["round"], seen["epoch"], seen["members"]) == ("finished", 2, 3, {})
    assert seen["adapter"] == Path("state/adapter.sha256").read_text().strip() == said[-1].split()[-1]
    assert any(text.startswith("epoch 1 of 2 is closed, loss") for text in said)
    with Peering(config(here, "a"), until=2) as again:
        assert again.run() and again.picture().adapter == seen["adapter"]


def test_a_peer_that_is_stopped_says_so_and_can_be_started_again(here: Path) -> None:
    typed("admit", "organiser", *cards("a", "b", "c"))
    Path("peer.yaml").write_text(yaml.safe_dump(config(here, "a", listen="127.0.0.1:0").model_dump(mode="json")))
    program = Program(here / "a.log", "peer", "run", "--config", here / "peer.yaml")
    for _ in range(2):
        program.start()
        end = time.monotonic() + SECONDS
        while "waiting" not in _status() or _status()["ended"] is not None:
            assert time.monotonic() < end and not program.ended, program.printed
            time.sleep(0.02)
        assert "more than two thirds of the roster to be met" in typed("status", "state")
        program.terminate()
        assert program.wait() == 3, program.printed
        assert "a in peers: stopped, 0 of 12 epochs closed" in typed("status", "state", code=3)
    assert program.printed.count("it goes on where it was") == 2


def _status() -> dict[str, object]:
    path = Path("state") / "status.json"
    told: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    return told


def test_a_run_of_deltas_is_one_too(here: Path) -> None:
    raw = (
        Path("organiser/run.yaml").read_text().replace("mode: scalar", "mode: delta").replace("epochs: 12", "epochs: 2")
    )
    Path("described.yaml").write_text(raw.replace("segments: 4", "segments: 1"))
    typed("init", "second", "--run", "described.yaml", "--set", "delta.local_steps=2", "--set", "delta.batch_size=4")
    typed("join", "second/run.yaml", "d", "--keys", "d")
    typed("admit", "second", "d/d.card")
    with Peering(config(here, "d", "second")) as peering:
        assert peering.run()
    assert (Path("state") / "adapter" / "adapter_config.json").exists()


def test_a_run_goes_on_from_the_adapter_of_another(here: Path) -> None:
    typed("admit", "organiser", *cards("a"))
    with Peering(config(here, "a"), until=1) as first:
        assert first.run()
    kept = Path("state/adapter")
    assert "send it too" in typed("init", "next", "--run", "organiser/run.yaml", "--start", kept)
    assert load_run(Path("next/run.yaml")).start_sha256 != load_run(Path("organiser/run.yaml")).start_sha256
    typed("join", "next/run.yaml", "d", "--keys", "d")
    typed("admit", "next", "d/d.card")
    with pytest.raises(SpaceError, match="name its folder as `start`"):
        Peering(config(here, "d", "next", folder="other"))
    with Peering(config(here, "d", "next", folder="other", start=str(kept)), until=1) as following:
        ledger = following.peer.ledger
        assert isinstance(ledger, ScalarLedger)
        assert torch.equal(ledger.adapter(following.peer.state), Adapter.load(kept).vector)
    other = "peft=LoraConfig(r=3, target_modules=['query'])"
    assert "PEFT config" in typed("init", "odd", "--run", "organiser/run.yaml", "--set", other, "--start", kept, code=1)
    assert not Path("odd").exists()


def test_a_terminal_shows_the_members_and_nothing_that_steers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(peer_view, "out", Console(file=written, force_terminal=True, width=100, color_system=None))
    members = {
        "b": MemberPicture(number=2, address="host:1", reached=True, heard=time.time(), segments=3, sent_bytes=1500),
        "c": MemberPicture(number=3, barred=True),
        "d": MemberPicture(number=4, address="host:2", heard=time.time(), trouble="gone"),
        "e": MemberPicture(number=5, heard=time.time()),
    }
    seen = PeerPicture(
        name="run", rounds=9, round=2, number=1, peer="a", epoch=3, segments=1, most_segments=4, roster=1, view=1,
        waiting="epoch 3 to be closed", failure="odd", accuracy=0.5, members=members,
    )  # fmt: skip
    view = peer_view.PeerView()
    with view.live(lambda: seen):
        view.say("peer 2 says \x1b[2J what [red]cannot[/] be used")
    words = (
        "a in run: running, 2 of 9 epochs closed, accuracy 0.500",
        "epoch 3: 1 of 4 segments published, attempt 2 at closing",
        "waiting for epoch 3 to be closed",
        r"peer 2 says \x1b[2J what [red]cannot[/] be used",
        *("odd", "reached", "barred", "away", "calls", "1.5 kB"),
    )
    assert [text for text in words if text not in written.getvalue()] == []
