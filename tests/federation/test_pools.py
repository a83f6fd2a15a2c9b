"""Updates whose decode ends in something linear are summed before it, which then is done once for all sites."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft import wire
from fedpeft.codecs import SRHT, Codec, Context, ErrorFeedback, Ferret, Fragments, Numbers, PublicSupport
from fedpeft.errors import PayloadError
from fedpeft.federation import Journal, Plan, Server, messages
from fedpeft.federation.pools import Pools
from fedpeft.strategies import TIES, Mean, Scaled, Strategy
from tests.codecs.examples import without_type_checks
from tests.federation import world
from tests.federation.test_buffered import Paced, accepted, sent
from tests.federation.world import SPACE, START, Tampering

NAMES = ("ann", "bob", "cat", "dan", "eve")
SKETCHED = [
    SRHT(100),
    SRHT(100, scale="unbiased", dtype="float16"),
    Ferret(50, dtype="logbyte", directions="run"),
    PublicSupport(0.2),
    PublicSupport(0.2, elect="last"),
    Fragments(SRHT(density=0.2, block=64), 2),
]


@dataclass(frozen=True)
class Each(Mean):
    """The mean, of updates that are decoded each for itself."""

    averaging = False


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The codecs whose last step was done, one after the other; checks of types read updates too, and rest."""
    done: list[str] = []
    for kind, name in ((SRHT, "_combine"), (Ferret, "_combine"), (PublicSupport, "_put")):
        step = getattr(kind, name)

        def counted(self: Codec, *args: object, step=step) -> object:
            done.append(repr(self))
            return step(self, *args)

        monkeypatch.setattr(kind, name, counted)
    with without_type_checks():
        yield done


def run(plan: Plan, folder: Path) -> tuple[Server, Tampering]:
    transport = Tampering(world.clients(folder / "sites", NAMES))
    with Journal(folder / "journal") as journal:
        server = world.server(plan, transport, journal)
        list(server.run())
    return server, transport


@pytest.mark.parametrize("codec", SKETCHED, ids=repr)
def test_the_mean_of_five_sites_costs_one_decode_a_round(tmp_path: Path, codec: Codec, spread: list[str]) -> None:
    run(Plan(rounds=3, codec=codec), tmp_path)
    assert len(spread) == 3


@pytest.mark.parametrize("codec", SKETCHED, ids=repr)
@pytest.mark.parametrize(("strategy", "each"), [(Mean(), Each()), (Scaled(Mean(), 0.5), Scaled(Each(), 0.5))], ids=repr)
def test_it_is_the_mean_of_what_each_is_decoded_to(
    tmp_path: Path, codec: Codec, strategy: Strategy, each: Strategy, spread: list[str]
) -> None:
    pooled, again, apart = (
        run(Plan(rounds=1, codec=codec, strategy=s), tmp_path / str(i))[0].state.vector
        for i, s in enumerate([strategy, strategy, each])
    )
    assert len(spread) == 1 + 1 + len(NAMES)
    assert torch.equal(pooled, again)
    assert torch.allclose(pooled, apart, rtol=0, atol=1e-6)
    assert (pooled - START).norm() > 0.5


def test_a_strategy_that_looks_at_each_update_gets_each(tmp_path: Path, spread: list[str]) -> None:
    run(Plan(rounds=2, codec=SRHT(100), strategy=TIES()), tmp_path)
    assert len(spread) == 2 * len(NAMES)


@pytest.mark.parametrize("directions", ["round", "run"])
def test_updates_of_several_rounds_are_summed_where_they_share_directions(
    tmp_path: Path, directions: str, spread: list[str]
) -> None:
    plan = Plan(rounds=8, buffer=2, codec=SRHT(100, directions=directions))
    transport = Paced(world.clients(tmp_path / "sites", NAMES[:3]), {"ann": 1, "bob": 2, "cat": 7})
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, transport, journal)
        states = [START, *(server.state.vector for _ in server.run())]
        counted = accepted(world.log(journal))
    bases = {number: Counter(base for n, _, base in counted if n == number) for number in range(1, 9)}
    assert max(map(len, bases.values())) > 1, "some round has updates of several"
    assert len(spread) == (8 if directions == "run" else sum(map(len, bases.values())))
    for number in range(1, 9):
        total, weights = torch.zeros(SPACE.numel, dtype=torch.float64), 0
        for node, base in [(node, base) for n, node, base in counted if n == number]:
            weight = 2 * NAMES.index(node) + 1
            delta = sent(server, plan, transport, node, base).double()
            total, weights = total + weight * delta / math.sqrt(1 + number - base), weights + weight
        assert torch.allclose(states[number].double(), states[number - 1].double() + total / weights, atol=1e-6)


@pytest.mark.parametrize("codec", [SRHT(100), Ferret(60, scale="unbiased"), PublicSupport(0.2)], ids=repr)
def test_a_norm_is_taken_of_the_delta_where_its_numbers_do_not_tell(
    tmp_path: Path, codec: Codec, spread: list[str]
) -> None:
    """The bound that the numbers give may be above the largest norm, and the norm below it."""
    _, transport = run(Plan(rounds=1, codec=codec), tmp_path / "first")
    lengths, bounds = [], []
    for number, (node, client) in enumerate(sorted(transport._handlers.items()), 1):
        ctx = Context(0, 1, number)
        delta = next(client._trainer.train(client._trainer.jobs)).vector - START.half().float()
        parts, sketch = codec.encode(delta, SPACE, ctx), codec.sketch(SPACE, ctx)
        assert sketch is not None, node
        lengths.append(float(codec.decode(parts, SPACE, ctx).norm()))
        bounds.append(sketch.longest(sketch.values(parts)))
    largest = max(lengths)
    for bound, doubtful in ((1.0001 * max(bounds), 0), (1.0001 * largest, sum(b > 1.0001 * largest for b in bounds))):
        del spread[:]
        run(Plan(rounds=1, codec=codec, largest_norm=bound), tmp_path / f"{doubtful}")
        assert len(spread) == doubtful + 1
    assert doubtful > 0
    folder = tmp_path / "one is too long"
    run(Plan(rounds=1, codec=codec, largest_norm=0.9999 * largest, quorum=0.5), folder)
    with Journal(folder / "journal") as journal:
        (refused,) = [record for record in world.log(journal) if record["kind"] == "REFUSE"]
    assert f"norm: expected an L2 norm of at most {0.9999 * largest:g}, got {largest:g}" in refused["why"]


def test_numbers_that_would_sum_to_infinity_are_refused_before_they_are_summed(tmp_path: Path) -> None:
    codec, transport = SRHT(100), Tampering(world.clients(tmp_path / "sites", NAMES))

    def endless(node: str, data: bytes) -> bytes:
        if node != "cat":
            return data
        reply, _ = messages.split(data)
        header = wire.Header(SPACE.fingerprint, reply.run, 1, 3, repr(codec), SPACE.numel)
        return world.reply(data, payload=wire.pack(header, {"product": Numbers(np.full(100, 3e38, np.float32))}))

    transport.tamper = endless
    with Journal(tmp_path / "journal") as journal:
        server = world.server(Plan(rounds=1, codec=codec, quorum=0.5), transport, journal)
        (metrics,) = server.run()
        (refused,) = [record for record in world.log(journal) if record["kind"] == "REFUSE"]
    assert metrics["counted"] == 4 and refused["node"] == "cat"
    assert "100 products of 3e+38 may sum to infinity" in refused["why"]


def test_error_feedback_is_the_clients_and_not_the_servers(tmp_path: Path, spread: list[str]) -> None:
    run(Plan(rounds=3, codec=ErrorFeedback(SRHT(100))), tmp_path)
    assert len(spread) == 3 + 3 * len(NAMES)


def test_pools_by_hand() -> None:
    codec, pools = PublicSupport(1.0), Pools()
    assert not pools and not list(pools)
    for number, value, weight, factor in ((1, 2.0, 3.0, 1.0), (1, 4.0, 1.0, 0.5), (2, 8.0, 5.0, 1.0)):
        ctx = Context(round=number)
        sketch = codec.sketch(SPACE, ctx)
        pools.add(sketch, sketch.values(codec.encode(torch.full((SPACE.numel,), value), SPACE, ctx)), weight, factor)
    assert [(update.weight, float(update.delta[3])) for update in pools] == [(4.0, 2.0), (5.0, 8.0)]
    assert torch.equal(pools[1].delta, torch.full((SPACE.numel,), 8.0)) and len(pools[:2]) == len(pools) == 2


def test_a_mean_that_is_not_finite_is_no_update() -> None:
    codec, ctx, pools = PublicSupport(1.0), Context(round=1), Pools()
    sketch = replace(codec.sketch(SPACE, ctx), spread=lambda values: torch.from_numpy(values) * math.inf)
    pools.add(sketch, np.ones(SPACE.numel, np.float32), 1.0)
    with pytest.raises(PayloadError, match="a mean of 725 numbers decoded to infinity or NaN"):
        pools[0]
