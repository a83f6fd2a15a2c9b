"""What a client keeps lies in its file: a thousand of them cost a process no memory."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedpeft.codecs import ErrorFeedback, Identity, Ternary
from fedpeft.federation import ClientStore, Journal, Plan
from fedpeft.federation.client_state import ClientState
from tests.federation import world
from tests.federation.world import SPACE

MANY, ASKED = 1200, 150


def test_residuals_of_a_thousand_sites_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    names = [f"site-{i:04}" for i in range(MANY)]
    clients = world.clients(tmp_path / "sites", names)
    plan = Plan(rounds=3, sites=MANY, cohort=ASKED, largest_norm=1e6, codec=ErrorFeedback(Ternary(density=0.2)))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, world.Tampering(clients), journal)
        assert [row["counted"] for row in server.run()] == [ASKED] * 3
    gc.collect()
    assert sum(type(held) is ClientState for held in gc.get_objects()) < 10
    kept = [name for name in names if (tmp_path / "sites" / name).exists()]
    assert ASKED < len(kept) <= 3 * ASKED, "those who were never asked have nothing to keep"
    for name in kept[::20]:
        assert ClientStore(tmp_path / "sites" / name, SPACE).load().residual.any()


def test_a_residual_of_nothing_takes_no_room(tmp_path: Path) -> None:
    sizes = {}
    for codec in (Identity(), ErrorFeedback(Ternary(density=0.2))):
        clients = world.clients(tmp_path / repr(codec), ["ann"])
        with Journal(tmp_path / repr(codec) / "journal") as journal:
            list(world.server(Plan(rounds=1, codec=codec), world.Tampering(clients), journal).run())
        path = tmp_path / repr(codec) / "ann"
        state = ClientStore(path, SPACE).load()
        again = ClientStore(tmp_path / "again", SPACE)
        again.save(replace(state, reply=b""))
        assert torch.equal(again.load().residual, state.residual)
        sizes[repr(codec)] = (tmp_path / "again").stat().st_size
    lean, full = sizes.values()
    assert lean + 4 * SPACE.numel <= full
