"""Many peers in one process: whatever the network does, all end with one adapter; and whole experiments of them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fedpeft.cli.application import app
from fedpeft.cli.simulate import simulate  # noqa: F401 - the command, on the app
from fedpeft.codecs import ErrorFeedback, Ternary
from fedpeft.config import Experiment
from fedpeft.config.swarm import SwarmSection, load_swarm
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.federation import Plan
from fedpeft.peers.delta import DeltaLedger
from fedpeft.peers.delta_work import DeltaWork
from fedpeft.runtime.peer.topology import neighbours
from fedpeft.runtime.simulated.modes import Log
from fedpeft.runtime.simulated.network import Weather
from fedpeft.runtime.simulated.rehearsal import Rehearsal
from fedpeft.runtime.simulated.swarm import Conditions, Once, Swarm
from fedpeft.strategies import TrimmedMean
from fedpeft.training import Settings
from tests import tiny
from tests.peers.learning import RUN, SPACE, Pull, examples, point

EPOCHS = 3


def ledger(**plan: object) -> DeltaLedger:
    known = {"codec": ErrorFeedback(Ternary(0.5)), "settings": Settings(local_steps=2, learning_rate=0.3)} | plan
    return DeltaLedger(Plan(rounds=EPOCHS, **known), SPACE, torch.zeros(SPACE.numel), RUN)


def swarm(peers: int, topology: str, given: DeltaLedger | None = None, patience: float = 80, **more: object) -> Swarm:
    given = given or ledger()
    near = {i + 1: [j + 1 for j in others] for i, others in enumerate(neighbours(topology, peers))}
    works = [DeltaWork(given, Pull(), examples(member)) for member in range(1, peers + 1)]
    return Swarm(given, works, Conditions(near, patience=patience, **more), RUN)


def by_hand(peers: int) -> bytes:
    """What one who holds everything at once comes to."""
    given = ledger()
    works = {member: DeltaWork(given, Pull(), examples(member)) for member in range(1, peers + 1)}
    state = given.beginning()
    for epoch in range(1, EPOCHS + 1):
        state = given.fold(state, epoch, {n: [w.segment(state, epoch, n, 1)] for n, w in works.items()})
    return state


@pytest.mark.parametrize("topology", ["complete", "ring", "random"])
def test_peers_come_to_what_one_who_knows_all_comes_to(topology):
    peers = swarm(7, topology)
    assert list(peers.epochs(EPOCHS)) == [1, 2, 3]
    assert peers.states() == {by_hand(7): 7}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "weather",
    [Weather(loss=0.3), Weather(repeat=0.4), Weather(damage=0.2), Weather(delay=0.4), Weather(0.3, 0.2, 0.05)],
)
def test_a_bad_network_costs_time_and_nothing_else(weather, seed):
    peers = swarm(5, "random", weather=weather, seed=seed, patience=200)
    assert list(peers.epochs(EPOCHS)) == [1, 2, 3]
    assert peers.states() == {by_hand(5): 5}


def test_halves_that_cannot_reach_each_other_close_nothing():
    peers = swarm(6, "complete", split=60, patience=20)
    for _ in range(60):
        peers.round(EPOCHS)
    assert {peer.epoch for peer in peers.peers.values()} == {1}
    assert list(peers.epochs(EPOCHS)) == [1, 2, 3]
    assert len(peers.states()) == 1
    assert not peers.alarms


def test_the_same_seed_gives_the_same_bytes():
    one, two = (swarm(4, "complete", weather=Weather(0.2, 0.2, 0.05), seed=7) for _ in range(2))
    for each in (one, two):
        list(each.epochs(2))
    assert one.network.sent == two.network.sent
    assert (one.rounds, one.states()) == (two.rounds, two.states())


def test_segments_of_an_epoch_are_all_published():
    peers = swarm(4, "complete", most_segments=3)
    peers.round(EPOCHS)
    while len(set(map(len, (p.chains.segments(1) for p in peers.peers.values())))) > 1:
        peers.round(EPOCHS)
    assert list(peers.epochs(1)) == [1]
    snapshot = peers.peers[1].snapshot()
    assert snapshot is not None
    assert len(peers.states()) == 1


def test_reading_once_changes_no_answer():
    given = ledger(strategy=TrimmedMean(0.2))
    once = Once(given)
    bodies = {n: [given.seal(point(n), torch.zeros(SPACE.numel), 8, given.context(1, n))[0]] for n in range(1, 6)}
    for _ in range(2):
        assert once.fold(once.beginning(), 1, bodies) == given.fold(given.beginning(), 1, bodies)
        once.check(bodies[1][0])
        with pytest.raises(PayloadError):
            once.check(bodies[1][0][:-1])
    assert once.fold(once.beginning(), 1, {1: bodies[2], 2: bodies[1]}) == once.beginning()


# Whole experiments


def experiment(folder: Path, **more: object) -> Experiment:
    plain = {"server_optimizer": "SGD(lr=1.0)", "rounds": 2}
    return Experiment.model_validate(tiny.experiment(folder, **(plain | more)))


@pytest.mark.parametrize(
    ("mode", "topology"), [("delta", "complete"), ("delta", "ring"), ("scalar", "random"), ("gossip", "ring")]
)
def test_an_experiment_is_done_without_a_server(tmp_path, mode, topology):
    known = {"topology": topology, "mode": mode, "loss": 0.1, "scalar": {"directions": 64}}
    running = Rehearsal(experiment(tmp_path), SwarmSection.model_validate(known), tmp_path / "run")
    rows = list(running.run())
    assert [row["epoch"] for row in rows] == [1, 2]
    assert running.mode.agree()
    assert all(row["sent_bytes"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert rows == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    if mode == "gossip":
        assert 0 < rows[-1]["distance"] < rows[-1]["moved"]
    else:
        assert [row["agree"] for row in rows] == [3, 3]
        assert len({row["hash"] for row in rows}) == 2
    assert running.measure()["loss"] == pytest.approx(rows[-1]["loss"])


def test_deltas_by_peers_are_worth_what_a_server_makes_of_them(tmp_path):
    more = {"rounds": 10, "training": {"local_steps": 20, "learning_rate": 2e-2}, "codec": "Identity()"}
    running = Rehearsal(experiment(tmp_path, **more), load_swarm(["topology=ring"]), tmp_path / "run")
    rows = list(running.run())
    assert rows[-1]["accuracy"] > 0.7
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_what_takes_a_server_is_said_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="cohort"):
        Rehearsal(experiment(tmp_path, cohort=2), SwarmSection(), tmp_path / "run")
    with pytest.raises(ConfigError, match="mode"):
        load_swarm(["mode=deltas"])
    with pytest.raises(ConfigError, match="did you mean|loss"):
        load_swarm(["los=0.1"])


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    (folder / "tiny.yaml").write_text(experiment(folder).to_yaml())
    runs = ["--runs", str(folder / "runs")]
    done = CliRunner().invoke(app, ["simulate", str(folder / "tiny.yaml"), *runs, *arguments])
    return done.exit_code, done.output


def test_the_command_shows_agreement(tmp_path):
    code, shown = command(tmp_path, "--topology", "ring", "--peers", "loss=0.1", "--rounds", "1")
    assert code == 0, shown
    assert "agree 3/3" in shown
    assert "sent/peer" in shown
    assert yaml.safe_load((tmp_path / "runs" / "tiny" / "config.yaml").read_text())["rounds"] == 1


def test_the_command_fails_where_peers_disagree(tmp_path, monkeypatch):
    monkeypatch.setattr(Log, "agree", lambda self: False)
    code, shown = command(tmp_path, "--topology", "complete", "--rounds", "1")
    assert code == 1, shown


@pytest.mark.parametrize("wrong", [("--peers", "loss=0.1"), ("--topology", "ring", "--engine", "flower")])
def test_options_that_contradict_are_refused(tmp_path, wrong):
    assert command(tmp_path, *wrong)[0] == 2
