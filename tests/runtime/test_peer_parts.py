"""Gossip as a run on the command line: what it is given, what it refuses, and that it is the simulation's."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from fedpeft.cli import peer_view
from fedpeft.cli.peer import commands
from fedpeft.config import Experiment, ModelSection
from fedpeft.config.peer import PeerConfig, load_run
from fedpeft.config.swarm import SwarmSection
from fedpeft.errors import ConfigError, IdentityError
from fedpeft.peering import Peering
from fedpeft.peers.gossip import metropolis
from fedpeft.preparation import prepare
from fedpeft.runtime.peer.gossip_course import GossipCourse
from fedpeft.runtime.peer.topology import among
from fedpeft.runtime.simulated.modes import Cast, Neighbourly
from fedpeft.watching.peer import MemberPicture, PeerPicture
from tests import tiny
from tests.command_line import type_in

typed = partial(type_in, commands)
TRAINING = {"local_steps": 2, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(here: Path, names: Sequence[str], *settings: str) -> None:
    """An organiser's run of gossip, with peers on its first roster."""
    raw = tiny.experiment(here)
    model, labels = raw["model"], f"labels=[{', '.join(sorted(tiny.COLOURS))}]"
    assert isinstance(model, dict)
    sets = [
        labels,
        f"model.name={model['name']}",
        "model.max_length=16",
        f"peft={raw['peft']}",
        "mode=gossip",
        "epochs=3",
    ]
    sets += [f"delta.{key}={value}" for key, value in TRAINING.items()]
    typed("init", "organiser", *(word for each in (*sets, *settings) for word in ("--set", each)))
    for name in names:
        typed("join", "organiser/run.yaml", name, "--keys", name)
    typed("admit", "organiser", *(f"{name}/{name}.card" for name in names))


def config(here: Path, name: str) -> PeerConfig:
    raw = {
        "run": "organiser/run.yaml",
        "roster": "organiser/roster.json",
        "keys": name,
        "folder": f"state-{name}",
        "listen": None,
        "data": {"source": f"LocalFile({str(here / 'colours.jsonl')!r}, label='label')"},
        "model": {"threads": 1},
        "stay_s": 0,
    }
    return PeerConfig.model_validate(raw)


def simulated(here: Path) -> Tensor:
    """What a single simulated peer ends with."""
    run, own = load_run(Path("organiser/run.yaml")), config(here, "a")
    model = ModelSection(name=run.model.name, max_length=16, threads=1)
    prepared = prepare(model, run.peft, own.data.source, run.labels, run.seed)
    raw = tiny.experiment(here, sites=1, training=TRAINING, codec="Ternary(density=0.2, scale='norm')")
    swarm, data = SwarmSection(mode="gossip", topology="ring"), prepared.trainer.encode(prepared.train)
    mode = Neighbourly(Cast(Experiment.model_validate(raw), swarm, prepared.trainer, [data], bytes(32)))
    assert list(mode.epochs(3)) == [1, 2, 3]
    return mode.gossip.adapters[1]


def test_a_peer_trains_as_a_simulated_one_does_and_says_how_it_stands(here: Path) -> None:
    begin(here, ["a"])
    said: list[str] = []
    with Peering(config(here, "a"), said.append) as peering:
        assert peering.run()
        rounds = [text.partition(",")[0] for text in said if text.startswith("round ")]
        assert rounds == ["round 1 of 3 is done", "round 2 of 3 is done", "round 3 of 3 is done"]
        course = peering.node._course
        assert isinstance(course, GossipCourse)
        assert torch.equal(course._work.adapter, simulated(here))
    shown = typed("status", "state-a")
    assert "a in peers: finished, 3 of 3 rounds done, loss" in shown and "3 rounds told to 0 neighbours, " in shown
    seen = json.loads(CliRunner().invoke(commands, ["status", "state-a", "--json"]).output)
    assert (seen["mode"], seen["round"]) == ("gossip", 3) and seen["distance"] >= 0
    assert seen["adapter"] == Path("state-a/adapter.sha256").read_text().strip()
    with Peering(config(here, "a")) as again:
        assert again.run() and again.picture().adapter == seen["adapter"]


def test_neighbours_are_those_of_the_first_roster(here: Path) -> None:
    begin(here, ["a", "b", "c", "d"])
    typed("join", "organiser/run.yaml", "late", "--keys", "late")
    assert "keeps the members of its first roster to its end" in typed("admit", "organiser", "late/late.card")
    with pytest.raises(IdentityError, match="not on the roster that the run began with"):
        Peering(config(here, "late"))
    assert "keeps the members of its first roster to its end" in typed("dismiss", "organiser", "b")
    with Peering(config(here, "a")) as peering:
        assert sorted(peering.picture().members) == ["b", "d"]
        assert set(peering.peer.chains.keys) == {1, 2, 4}
        assert peering.peer.newest_roster.serial == 3
        assert "its neighbours to be met" in peering.picture().waiting


def test_a_neighbour_counts_the_less_the_more_neighbours_it_has(here: Path) -> None:
    names = [f"peer-{number}" for number in range(1, 8)]
    begin(here, names, "gossip.topology=random")
    near = among("random", range(1, 8), load_run(Path("organiser/run.yaml")).seed)
    number, expected = next((n, each) for n, each in metropolis(near).items() if len(set(each.values())) > 1)
    with Peering(config(here, names[number - 1])) as peering:
        course = peering.node._course
        assert isinstance(course, GossipCourse)
        assert course._work._circle._weights == expected


def test_a_strategy_that_takes_more_than_neighbours_is_refused(here: Path) -> None:
    begin(here, ["a", "b", "c", "d"], "delta.strategy=Krum(byzantine=1)")
    with pytest.raises(ConfigError, match="merges at least 5, and a member and its neighbours are 3; take another"):
        Peering(config(here, "a"))


def test_what_a_codec_reads_is_refused(here: Path) -> None:
    begin(here, ["a"], "delta.codec=PublicSupport(0.1, elect='last')")
    with pytest.raises(ConfigError, match="takes more than neighbours' differences"):
        Peering(config(here, "a"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("delta.outer_optimizer=SGD(lr=0.7)", r"delta.outer_optimizer: expected 'SGD\(lr=1.0\)', got 'SGD\(lr=0.7\)'"),
        ("delta.start=own", "delta.start: expected 'global', got 'own'; in mode gossip"),
        ("delta.slots=carried", "delta.slots: expected 'all'"),
        ("delta.supermask=0.5", "delta.supermask"),
        ("gossip.gamma=0", "gossip.gamma"),
        ("gossip.topology=star", "gossip.topology: Input should be 'complete', 'ring' or 'random'"),
        ("gossip.gama=1", "did you mean 'gamma'|gossip.gama"),
    ],
)
def test_what_no_gossip_can_do_is_refused_with_the_file(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(None, ("labels=[a, b]", "mode=gossip", setting), begun=False)


def test_a_terminal_shows_rounds_and_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(peer_view, "out", Console(file=written, force_terminal=True, width=100, color_system=None))
    seen = PeerPicture(
        name="run", rounds=9, round=2, number=1, peer="a", mode="gossip", epoch=1, segments=3, most_segments=9,
        roster=1, view=0, waiting="segment 3 of peer 2", distance=0.12345,
        members={"b": MemberPicture(number=2, segments=2)},
    )  # fmt: skip
    peer_view.out.print(peer_view.drawn(seen, "running"))
    words = (
        "a in run: running, 2 of 9 rounds done",
        "3 rounds told to 1 neighbours, 0.123 from the mean of what all of them told last",
        "waiting for segment 3 of peer 2",
    )
    assert [text for text in words if text not in written.getvalue()] == []
