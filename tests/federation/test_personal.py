"""FedSA-LoRA: A is shared, each site's B is its own; it is trained, never sent, and outlives whatever happens."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.adapters import Adapter
from fedpeft.codecs import ErrorFeedback, Identity, Ternary, Turns
from fedpeft.config import validate
from fedpeft.federation import Client, ClientStore, Journal, Plan
from fedpeft.simulation import Simulation
from fedpeft.training import Encoded, Settings
from tests import tiny
from tests.federation import world
from tests.federation.world import SPACE, START, Tampering

OWN = Settings(start="own")
PLAN = Plan(rounds=5, codec=ErrorFeedback(Turns(Identity(), ("lora_A head",))), settings=OWN)


def served(plan: Plan, folder: Path, stops: tuple[int, ...], tamper: Callable[..., Any] | None = None):
    """The sites, their public trainers' jobs and the server's vector after runs up to each stop, resumed in between."""
    for stop in stops:
        transport = Tampering(handlers := world.clients(folder / "sites"))
        transport.tamper = tamper or transport.tamper
        with Journal(folder / "journal") as journal:
            server = world.server(plan, transport, journal)
            while server.state.round < stop:
                next(server.run())
    return server, handlers


def b(vector: torch.Tensor) -> torch.Tensor:
    return SPACE.view(vector, "b")


@pytest.mark.parametrize("inner", [Identity(), Ternary(density=0.3)], ids=repr)
def test_each_site_goes_on_with_its_own_b_and_the_global_one_stays(tmp_path: Path, inner: Identity | Ternary) -> None:
    plan = replace(PLAN, codec=ErrorFeedback(Turns(inner, ("lora_A head",))))
    server, handlers = served(plan, tmp_path, (5,))
    assert plan.personal(SPACE) == {"b"}
    assert torch.equal(b(server.state.vector), b(START)) and not torch.equal(server.state.vector, START)
    ends = []
    for client in handlers.values():
        jobs = client._trainer.jobs
        trained = [next(world.Puller().train([job])).vector for job in jobs]
        assert all(torch.allclose(b(job.start), b(before)) for job, before in zip(jobs[1:], trained, strict=False))
        ends.append(b(trained[-1]))
        state = client._store.load()
        assert torch.allclose(b(state.adapter + state.residual), ends[-1], atol=1e-6)
    assert not torch.allclose(ends[0], ends[1], atol=0.1)


def test_a_run_that_was_stopped_twice_has_the_same_personal_parameters(tmp_path: Path) -> None:
    server, whole = served(PLAN, tmp_path / "whole", (5,))
    other, parts = served(PLAN, tmp_path / "parts", (1, 3, 5))
    assert torch.equal(server.state.vector, other.state.vector)
    for name in whole:
        assert torch.equal(whole[name]._store.load().residual, parts[name]._store.load().residual)


def test_an_update_that_is_refused_or_lost_costs_a_site_nothing_of_its_own(tmp_path: Path) -> None:
    """ann's payload of round 2 does not arrive whole, bob's of round 3 not at all."""

    def tamper(node: str, data: bytes) -> bytes | None:
        if (node, world.round_of(data)) == ("ann", 2):
            return data[:-1]
        return None if (node, world.round_of(data)) == ("bob", 3) else data

    server, handlers = served(replace(PLAN, quorum=0.6), tmp_path, (5,), tamper)
    assert [row["counted"] for row in server.history()] == [3, 2, 2, 3, 3]
    for client in handlers.values():
        jobs = client._trainer.jobs
        assert len(jobs) == 5
        for job, after in pairwise(jobs):
            assert torch.allclose(b(after.start), b(next(world.Puller().train([job])).vector))


def test_only_slots_that_are_never_sent_are_personal() -> None:
    turns = ErrorFeedback(Turns(Identity(), ("lora_A", "lora_B")))
    assert replace(PLAN, codec=turns).personal(SPACE) == {"head"}
    assert replace(PLAN, codec=turns, rounds=1).personal(SPACE) == {"b", "head"}
    assert replace(PLAN, codec=ErrorFeedback(Identity())).personal(SPACE) == set()
    assert replace(PLAN, settings=Settings()).personal(SPACE) == set()


def test_what_measures_nothing_is_not_given_examples_to_measure_on() -> None:
    with pytest.raises(ValueError, match="held_out: Puller, this site's trainer, measures no accuracy"):
        Client(world.Puller(), Encoded((), ()), SPACE, ClientStore(None, SPACE), held_out=Encoded((), ()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("fedsa")
    rules = {
        "codec": "ErrorFeedback(Turns(Identity(), ('lora_A',)))",
        "broadcast": "Turns(Identity('float16'), ('lora_A',))",
        "server_optimizer": "SGD(lr=1.0)",
        "rounds": 4,
        "training": {"local_steps": 20, "batch_size": 8, "learning_rate": 1e-2, "start": "own", "labels": "all"},
    }
    raw = tiny.experiment(folder, **rules)
    raw["data"] = {**raw["data"], "partition": "ByLabel()", "held_out": 0.25}  # type: ignore[dict-item]
    with Simulation(validate({**raw, "sites": 2}), folder / "run") as simulation:
        return simulation, list(simulation.run())


def test_sites_measure_what_is_their_own(finished: tuple[Simulation, list[dict[str, Any]]]) -> None:
    """The global adapter never learns: B is zero in it, and stays so."""
    simulation, rows = finished
    assert all(0 <= row["own_accuracy"] <= 1 for row in rows)
    assert rows[-1]["own_accuracy"] > rows[-1]["accuracy"] + 0.2
    for name, site in simulation.sites().items():
        kept = site["examples"] - round(0.25 * (site["examples"] - 1))
        assert rows[-1]["sites"][name]["weight"] == kept < site["examples"]
    written = [json.loads(line) for line in (simulation.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["own_accuracy"] for row in written] == [row["own_accuracy"] for row in rows]


def test_each_sites_adapter_is_saved_beside_the_global_one(finished: tuple[Simulation, list[dict[str, Any]]]) -> None:
    simulation, _ = finished
    shared = Adapter.load(simulation.folder / "adapter")
    own = [Adapter.load(simulation.folder / "adapters" / name) for name in simulation.sites()]
    assert len(own) == 2
    for slot in shared.space.slots:
        values = [shared.space.view(adapter.vector, slot.name) for adapter in (shared, *own)]
        alike = all(torch.allclose(values[0], value, atol=1e-6) for value in values[1:])
        assert alike == (slot.role == "lora_A")
