"""Statistics over real mutual TLS on loopback end in the bits of a run in memory."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from fedpeft.codecs import ErrorFeedback, Ternary
from fedpeft.federation import Journal, Plan, Server, largest_reply
from fedpeft.runtime.grpc.server import Limits
from fedpeft.strategies import Fisher, RegMean, Strategy
from tests.federation.test_statistics import clients, run
from tests.federation.world import SPACE, START
from tests.runtime.site_world import NAMES, Running, listening, wait_until


@pytest.mark.parametrize("strategy", [Fisher(), RegMean()], ids=repr)
def test_a_run_over_grpc_is_the_run_in_memory(keyring: Path, tmp_path: Path, strategy: Strategy) -> None:
    plan = Plan(rounds=2, strategy=strategy, codec=ErrorFeedback(Ternary(density=0.3)), deadline_s=20)
    handlers, limits = clients(tmp_path / "sites"), Limits(largest_reply=largest_reply(plan, SPACE))
    with ExitStack() as stack:
        transport = stack.enter_context(listening(keyring, tmp_path / "spool", limits=limits))
        for name in NAMES:
            site = Running(transport.address, keyring / name, handlers[name], tmp_path / f"spool-{name}")
            stack.enter_context(site)
        wait_until(lambda: transport.nodes() == sorted(NAMES))
        journal = stack.enter_context(Journal(tmp_path / "journal"))
        server = Server(plan, SPACE, START, transport, journal)
        assert [row["counted"] for row in server.run()] == [3, 3]
    assert torch.equal(server.state.vector, run(plan, tmp_path / "memory").state.vector)
