"""Codecs that read the public adapter: both ends read the same one, whatever a site has missed or lost."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fedpeft import ranking
from fedpeft.codecs import ErrorFeedback, Identity, PublicSupport, Ranks, Ternary, Uniform, per_slot
from fedpeft.federation import Journal, Plan, ServerOptimizer, messages
from fedpeft.strategies import Mean, RankVote, Strategy
from fedpeft.training import Settings
from tests.federation import world
from tests.federation.world import SPACE, Tampering

SEEN: list[list[torch.Tensor]] = []


@dataclass(frozen=True)
class Watched(Strategy):
    """The mean; keeps what the server decoded, in node order."""

    def merge(self, updates, ctx):
        SEEN.append([update.delta.clone() for update in updates])
        return Mean().merge(updates, ctx)


ELECTED = PublicSupport(0.1, elect="last", explore=0.25)
PLAN = Plan(rounds=6, codec=ErrorFeedback(ELECTED), broadcast=Uniform(bits=4), strategy=Watched(), quorum=0.5)
CODECS = [
    ELECTED,
    PublicSupport(0.1, Ternary(0.5), elect="last"),
    per_slot({"head": ELECTED}, default=Ranks()),
    per_slot({"lora_A": Ranks()}, default=Identity()),
]
ALL = ("ann", "bob", "cat")


def moved(client, since=0):
    """All that a client's training has moved, from its job number `since` on."""
    jobs = client._trainer.jobs[since:]
    return sum(next(client._trainer.train([job])).vector - job.start for job in jobs) if jobs else 0


def nothing_is_lost(client, decoded):
    """What a client made is what the server decoded and what the client still keeps."""
    kept = client._store.load().residual
    assert torch.allclose(sum(decoded) + kept, moved(client), atol=1e-4)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("broadcast", [Uniform(bits=4), Identity(), Ternary(0.05)], ids=repr)
def test_the_server_decodes_what_the_sites_encoded(tmp_path: Path, codec, broadcast) -> None:
    """Bob is not heard in rounds 2 and 3, and takes back what was not counted."""
    SEEN.clear()
    transport = Tampering(world.clients(tmp_path / "sites"))
    transport.tamper = lambda node, data: None if node == "bob" and world.round_of(data) in (2, 3) else data
    plan = replace(PLAN, codec=ErrorFeedback(codec), broadcast=broadcast)
    for rounds in (3, 6):  # the server stops in between
        with Journal(tmp_path / "journal") as journal:
            server = world.server(replace(plan, rounds=rounds), transport, journal)
            assert all(row["refused"] == 0 for row in server.run())
    assert [len(row) for row in SEEN] == [3, 2, 2, 3, 3, 3]
    for i, name in enumerate(ALL):
        own = [row[i if len(row) == 3 else ("ann", "cat").index(name)] for row in SEEN if len(row) == 3 or i != 1]
        nothing_is_lost(transport._handlers[name], own)


@pytest.mark.parametrize("broadcast", [Uniform(bits=4), Identity()], ids=repr)
def test_a_site_that_lost_all_is_sent_the_last_step_too(tmp_path: Path, broadcast) -> None:
    SEEN.clear()
    transport = Tampering(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(PLAN, broadcast=broadcast), transport, journal)
        for row in server.run():
            assert row["counted"] == 3
            if row["round"] == 3:
                (tmp_path / "sites" / "bob").unlink()
                transport._handlers["bob"] = world.clients(tmp_path / "sites")["bob"]
    nothing_is_lost(transport._handlers["bob"], [row[1] for row in SEEN[3:]])
    sent = [task for node, task in transport.asked if (node, task.round) == ("bob", 4)]
    whole = [(0, 3), (3, 4)] if broadcast == Uniform(bits=4) else [(0, 3), (0, 4)]
    assert [[(step.from_round, step.to_round) for step in task.broadcasts] for task in sent][-1] == whole


def test_a_support_that_is_not_elected_costs_nobody_a_second_adapter(tmp_path: Path) -> None:
    for codec, number in ((Ranks(), 1), (PublicSupport(0.1), 1), (ELECTED, 2)):
        transport = Tampering(world.clients(tmp_path / f"{codec!r}", ("ann",)))
        with Journal(tmp_path / f"journal {codec!r}") as journal:
            rounds = world.server(replace(PLAN, codec=codec), transport, journal).run()
            next(rounds), next(rounds)
            transport._handlers.update(world.clients(None, ("ann",)))
            next(rounds)
        assert len(transport.asked[-1][1].broadcasts) == number
        state = transport._handlers["ann"]._store.load()
        assert (state.before is not None) == (codec == ELECTED)


def test_a_site_refuses_a_task_that_leaves_the_last_step_out(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites", ("ann",)))
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(PLAN, rounds=2, codec=PublicSupport()), transport, journal).run())
    task = transport.asked[-1][1]
    task.codec = repr(ELECTED)
    task.run = b"another run....."
    del task.broadcasts[:]
    task.broadcasts.add(to_round=2, payload=_whole(task.run))
    head, _ = messages.split(transport._handlers["ann"](task.SerializeToString()))
    assert head.refusal.detail.endswith("needs the adapter of round 1 too") and head.refusal.reason == "stale adapter"


def _whole(run):
    from fedpeft.federation import broadcast

    return broadcast.whole(torch.zeros(SPACE.numel), SPACE, run, 2)


@pytest.mark.parametrize("broadcast", [Ranks(), Identity("float16")], ids=repr)
def test_rank_votes_travel_as_rankings(tmp_path: Path, broadcast) -> None:
    optimizer = ServerOptimizer("SGD(lr=1.0)")
    scores = Settings(supermask=0.5)
    plan = Plan(4, codec=Ranks(), broadcast=broadcast, strategy=RankVote(), optimizer=optimizer, settings=scores)
    transport = Tampering(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, transport, journal)
        for _ in server.run():
            handlers = transport._handlers.values()
            jobs = [client._trainer.jobs[-1] for client in handlers]
            ends = [next(c._trainer.train([job])).vector for c, job in zip(handlers, jobs, strict=True)]
            votes = sum(ranking.ranks(end, SPACE) for end in ends)
            of_fp16 = 2**-8  # and of a place or two
            assert torch.allclose(server.state.vector, ranking.scores(votes, SPACE), atol=of_fp16)
    public = transport._handlers["ann"]._store.load().adapter
    assert torch.equal(public, server.state.public)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"buffer": 2},
            r"PublicSupport\(.*reads the round's adapter, and with buffer: 2 updates answer several rounds",
        ),
        ({"codec": Ranks(), "buffer": 1}, r"Ranks\(\) reads the round's adapter"),
        ({"broadcast": ELECTED}, r"broadcast: PublicSupport\(.* reads the last step"),
    ],
)
def test_plans_that_cannot_agree_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **changes)
