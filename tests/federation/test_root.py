"""A trusted root: a site of the server's own operator, whose update is the measure of the others'."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpeft.codecs import Identity
from fedpeft.config import validate
from fedpeft.errors import QuorumError, RunError
from fedpeft.federation import Happening, Journal, Plan, Server
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.simulation import Simulation
from fedpeft.strategies import Context, FLTrust, Mean, Scaled, Update
from simulations.attacks import SignFlip
from simulations.dishonest import attacked
from tests import tiny
from tests.federation import world
from tests.federation.world import SPACE, START, Tampering

PLAN = Plan(rounds=2, codec=Identity(), strategy=FLTrust(), root="bob")


def served(plan: Plan, folder: Path, names: tuple[str, ...] = ("ann", "bob", "cat")) -> tuple[Server, Tampering]:
    transport = Tampering(world.clients(folder / "sites", names))
    with Journal(folder / "journal") as journal:
        server = world.server(plan, transport, journal)
        list(server.run())
    return server, transport


def test_the_others_are_merged_by_the_roots_update(tmp_path: Path) -> None:
    handlers = world.clients(tmp_path / "sites")
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(PLAN, rounds=1), MemoryTransport(handlers), journal).run())
        server = world.server(replace(PLAN, rounds=1), MemoryTransport(handlers), journal)
    held = START.half().float()
    deltas = {
        name: next(client._trainer.train(client._trainer.jobs[:1])).vector - held for name, client in handlers.items()
    }
    ctx = Context(SPACE, told={"root": deltas["bob"]})
    expected = FLTrust().merge([Update(deltas["ann"]), Update(deltas["cat"])], ctx)
    assert torch.allclose(server.state.vector - START, expected, atol=1e-6)


def test_the_root_is_asked_in_every_round_and_is_not_one_of_those_who_are_merged(tmp_path: Path) -> None:
    names = ("ann", "bob", "cat", "dan", "eve", "fay")
    _, transport = served(replace(PLAN, rounds=8, cohort=3), tmp_path, names)
    asked = {number: {n for n, task in transport.asked if task.round == number} for number in range(1, 9)}
    assert all(len(cohort) == 3 and "bob" in cohort for cohort in asked.values())
    assert set().union(*asked.values()) == set(names)
    assert {task.merged for _, task in transport.asked} == {2}


def test_a_round_without_the_roots_reply_is_left_out_and_three_stop_the_run(tmp_path: Path) -> None:
    silent, events = {2}, []
    transport = Tampering(world.clients(tmp_path / "sites"))
    transport.tamper = lambda node, data: None if node == "bob" and world.round_of(data) in silent else data
    plan = replace(PLAN, rounds=3, quorum=0.6)
    with Journal(tmp_path / "journal") as journal:
        server = Server(plan, SPACE, START, transport, journal, watch=events.append)
        first, second, third = server.run()
    assert [row["left_out"] == "" for row in (first, second, third)] == [True, False, True]
    assert second["counted"] == 2 and "the root, 'bob', was not counted" in second["left_out"]
    assert [event.round for event in events if event.kind is Happening.ALARM] == [2]
    silent |= {1, 2, 3}
    with Journal(tmp_path / "other") as journal, pytest.raises(RunError, match="3 rounds in a row .* the root, 'bob'"):
        transport = Tampering(world.clients(tmp_path / "others"))
        transport.tamper = lambda node, data: None if node == "bob" else data
        list(world.server(plan, transport, journal).run())


def test_a_round_does_not_open_without_the_root(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(PLAN, root="bobby"), transport, journal)
        with pytest.raises(QuorumError, match="round 1: the root, 'bobby', is not there; 3 others are"):
            next(server.run())
    assert not transport.asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": ""}, "needs a delta trained on data that the server trusts; name a site"),
        ({"strategy": Scaled(FLTrust(), 2.0), "root": ""}, "needs a delta trained on data that the server trusts"),
        ({"strategy": Mean()}, "goes by no root; take FLTrust"),
        ({"buffer": 2}, "with buffer: 2 updates answer several; leave out"),
        ({"sites": 1}, "merges at least 1 updates besides the root's, and 1 are asked for"),
    ],
)
def test_a_plan_has_a_root_and_a_strategy_for_it_or_neither(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)  # type: ignore[arg-type]


def test_a_wrapper_goes_by_the_root_as_the_strategy_inside_does() -> None:
    assert replace(PLAN, strategy=Scaled(FLTrust(), 2.0)).strategy.rooted


def losses(folder: Path, name: str, dishonest: int, **more: object) -> list[float]:
    training = {"local_steps": 6, "batch_size": 8, "learning_rate": 1e-2}
    rules = {"codec": "Identity()", "server_optimizer": "SGD(lr=1.0)", "training": training}
    experiment = validate(tiny.experiment(folder, **{"sites": 5, "rounds": 4, **rules, **more}))
    connect = attacked(experiment, SignFlip(4.0), dishonest) if dishonest else None
    with Simulation(experiment, folder / name, connect=connect) as simulation:
        return [simulation.server.before()["loss"], *(row["loss"] for row in simulation.run())]


def test_a_run_with_a_root_learns_where_three_of_five_send_their_deltas_backwards(tmp_path: Path) -> None:
    trusted = {"strategy": "FLTrust()", "root": "site-1"}
    before, *_, calm = losses(tmp_path, "calm", 0, **trusted)
    *_, attack = losses(tmp_path, "attack", 3, **trusted)
    *_, mean = losses(tmp_path, "mean", 3)
    assert mean > before > attack
    assert before - attack > 0.5 * (before - calm)
