"""The round loop over memory: who is asked, what is counted, what is refused, and what both ends hold."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.linalg import LinAlgError

from fedpeft import codecs, strategies, wire
from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Budget, Context, ErrorFeedback, Fragments, Identity, Ternary, Turns, Uniform
from fedpeft.errors import Defect, JournalError, PayloadError, QuorumError, RunError, SiteError
from fedpeft.federation import Client, ClientStore, Event, Happening, Journal, Plan, Server, ServerOptimizer, messages
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.space import Slot, Space
from fedpeft.training import Settings
from tests.federation import world
from tests.federation.world import SPACE, START, Tampering

PLAN = Plan(rounds=4, codec=ErrorFeedback(Ternary(density=0.3)), broadcast=Uniform(bits=4))
LOSSLESS = Plan(rounds=4)


def run(plan: Plan, folder: Path, names: tuple[str, ...] = ("ann", "bob", "cat")) -> tuple[Server, Tampering]:
    transport = Tampering(world.clients(folder / "sites", names))
    with Journal(folder / "journal") as journal:
        server = world.server(plan, transport, journal)
        list(server.run())
    return server, transport


def test_one_lossless_round_is_the_weighted_mean_of_what_clients_did(tmp_path: Path) -> None:
    transport = MemoryTransport(handlers := world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(LOSSLESS, rounds=1), transport, journal)
        (metrics,) = server.run()
    held = START.half().float()
    jobs = [client._trainer.jobs[0] for client in handlers.values()]
    assert all(torch.equal(job.start, held) for job in jobs)
    moved = [
        next(client._trainer.train([job])).vector - held for client, job in zip(handlers.values(), jobs, strict=True)
    ]
    mean = sum(weight * delta.double() for weight, delta in zip((1, 3, 5), moved, strict=True)) / 9
    assert torch.allclose(server.state.vector.double(), START.double() + mean, atol=1e-7)
    assert metrics["counted"] == 3


@pytest.mark.parametrize("strategy", ["Mean()", "TIES(trim='none')"])
@pytest.mark.parametrize("codec", ["Identity()", "Ternary(density=0.5)", "ErrorFeedback(Ternary(density=0.2))"])
@pytest.mark.parametrize("broadcast", ["Identity('float16')", "Uniform(bits=4)", "Ternary(density=0.5)"])
def test_every_site_holds_what_the_server_thinks_it_holds(
    tmp_path: Path, strategy: str, codec: str, broadcast: str
) -> None:
    down = codecs.parse(broadcast)
    assert isinstance(down, codecs.Codec)
    plan = Plan(rounds=6, codec=codecs.parse(codec), broadcast=down, strategy=strategies.parse(strategy), cohort=2)
    server, transport = run(plan, tmp_path)
    for name, client in transport._handlers.items():
        state = client._store.load()
        if server.state.counted.get(name) == server.state.round:
            assert torch.equal(state.adapter, server.state.public), name
    assert torch.equal(server.state.public, server.state.public.half().float())


def test_a_lossy_broadcast_catches_up(tmp_path: Path) -> None:
    """What the codec lost is in the next step: sites end near the server although every step is very coarse."""
    plan = Plan(rounds=40, broadcast=Ternary(density=0.5), settings=Settings())
    server, _ = run(plan, tmp_path)
    assert float((server.state.vector - server.state.public).norm()) < 0.2 * float(server.state.vector.norm())


def test_new_sites_get_the_whole_and_others_only_steps(tmp_path: Path) -> None:
    _, transport = run(PLAN, tmp_path)
    for _, task in transport.asked:
        (step,) = task.broadcasts
        assert (step.from_round == 0) == (task.round == 1) == bool(task.space)
        assert step.codec == ("Identity(dtype='float16')" if task.round == 1 else repr(PLAN.broadcast))


def test_an_absent_site_catches_up_by_the_steps_it_missed_or_by_the_whole(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(PLAN, rounds=6, quorum=0.5, broadcast=Ternary(density=0.05)), transport, journal)
        transport.tamper = lambda node, data: None if node == "bob" and 2 <= world.round_of(data) <= 3 else data
        list(server.run())
    sent = {(node, task.round): task for node, task in transport.asked}
    steps = [(s.from_round, s.to_round) for s in sent["bob", 4].broadcasts]
    assert steps in ([(1, 2), (2, 3), (3, 4)], [(0, 4)])
    assert [(s.from_round, s.to_round) for s in sent["ann", 4].broadcasts] == [(3, 4)]
    bob = transport._handlers["bob"]._store.load()
    assert torch.equal(bob.adapter, server.state.public)


def test_a_site_that_lost_its_disk_is_asked_again_with_the_whole(tmp_path: Path) -> None:
    handlers = world.clients(tmp_path / "sites")
    transport = Tampering(handlers)
    with Journal(tmp_path / "journal") as journal:
        server = world.server(PLAN, transport, journal)
        rounds = server.run()
        next(rounds)
        (tmp_path / "sites" / "bob").unlink()
        metrics = next(rounds)
    assert metrics["counted"] == 3
    assert [bool(task.space) for node, task in transport.asked if node == "bob"] == [True, False, True]


def test_what_was_not_counted_goes_back_into_the_residual(tmp_path: Path) -> None:
    """Error feedback loses nothing: deltas made = updates counted + what the residual still holds."""
    handlers = world.clients(tmp_path / "sites", ("ann",))
    transport = Tampering(handlers)
    with Journal(tmp_path / "journal") as journal:
        plan = replace(PLAN, codec=ErrorFeedback(Ternary(density=0.2)), rounds=3)
        server = world.server(plan, transport, journal)
        transport.tamper = lambda node, data: None if world.round_of(data) == 2 else data
        next(rounds := server.run())
        with pytest.raises(QuorumError):
            next(rounds)
        before = server.state.vector.clone()
        first = handlers["ann"]._store.load()
        handlers["ann"]._store.save(replace(first, replied=2))
        task = transport.asked[-1][1]
        task.round, task.counted = 3, 1
        del task.broadcasts[:]
        task.broadcasts.add(to_round=3, payload=_whole(server, 3))
        head, answered = messages.split(handlers["ann"](task.SerializeToString()))
    assert head.WhichOneof("result") == "update", head
    client = handlers["ann"]
    moved = sum(next(client._trainer.train([job])).vector - job.start for job in client._trainer.jobs[1:3])
    sent = _decoded(server, answered, plan, 3)
    after = client._store.load().residual
    residual_before = _residual_after_round_one(tmp_path / "other", plan)
    assert torch.allclose(sent + after, moved + residual_before, atol=1e-5)
    assert torch.equal(before, server.state.vector)


def _whole(server: Server, number: int) -> bytes:
    from fedpeft.federation import broadcast

    return broadcast.whole(server.state.public, SPACE, server.state.run, number)


def _decoded(server: Server, payload: bytes, plan: Plan, number: int) -> torch.Tensor:
    from fedpeft.federation import broadcast

    return broadcast.unpack(payload, plan.update_codec, SPACE, server.state.run, codecs.Context(0, number, 1))


def _residual_after_round_one(folder: Path, plan: Plan) -> torch.Tensor:
    _, transport = run(replace(plan, rounds=1), folder, ("ann",))
    return transport._handlers["ann"]._store.load().residual


def test_a_cohort_is_drawn_afresh_each_round_and_the_same_for_a_seed(tmp_path: Path) -> None:
    names = tuple("abcdefgh")
    plan = replace(PLAN, cohort=3, rounds=6)
    asked = []
    for folder in ("one", "two"):
        _, transport = run(plan, tmp_path / folder, names)
        asked.append([(task.round, node) for node, task in transport.asked])
    assert asked[0] == asked[1]
    cohorts = {tuple(node for round_, node in asked[0] if round_ == number) for number in range(1, 7)}
    assert all(len(cohort) == 3 for cohort in cohorts)
    assert len(cohorts) > 1
    _, other = run(replace(plan, seed=1), tmp_path / "three", names)
    assert [(task.round, node) for node, task in other.asked] != asked[0]


def test_replies_in_any_order_give_the_same_bits(tmp_path: Path) -> None:
    class Backwards(MemoryTransport):
        def exchange(self, requests, deadline_s):
            return reversed(list(super().exchange(requests, deadline_s)))

    results = []
    for folder, kind in (("a", MemoryTransport), ("b", Backwards)):
        with Journal(tmp_path / folder / "journal") as journal:
            server = world.server(PLAN, kind(world.clients(tmp_path / folder / "sites")), journal)
            list(server.run())
            results.append(server.state.vector)
    assert torch.equal(*results)


REFUSALS = {
    "bytes that are no reply": (lambda data: b"\xff\xff", "bad payload: the reply is not readable"),
    "no result": (
        lambda data: messages.join(pb.Reply(run=messages.split(data)[0].run, round=1)),
        "holds no result",
    ),
    "an earlier round": (lambda data: world.reply(data, round=0), "late: round 0 is closed, this is round 1"),
    "a future round": (lambda data: world.reply(data, round=2), "other round: expected round 1, got 2"),
    "another run": (lambda data: world.reply(data, run=b"x" * 16), "other run"),
    "weight 0": (lambda data: world.reply(data, weight=0.0), "weight: expected a weight in"),
    "a negative weight": (lambda data: world.reply(data, weight=-50.0), "weight: expected a weight in"),
    "a weight that is not a number": (lambda data: world.reply(data, weight=float("nan")), "weight"),
    "an enormous weight": (lambda data: world.reply(data, weight=1e12), "weight"),
    "a damaged payload": (
        lambda data: world.reply(data, payload=messages.split(data)[1][:-1]),
        "bad payload",
    ),
    "no payload": (lambda data: world.reply(data, payload=b""), "empty"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bad_reply_is_refused_with_its_reason_and_the_round_goes_on(tmp_path: Path, name: str) -> None:
    tamper, reason = REFUSALS[name]
    seen: list[Event] = []
    transport = Tampering(world.clients(None))
    transport.tamper = lambda node, data: tamper(data) if node == "bob" and world.round_of(data) == 1 else data
    plan = replace(PLAN, rounds=2, quorum=0.6)
    with Journal(tmp_path / "journal") as journal:
        server = Server(plan, SPACE, START, transport, journal, watch=seen.append)
        rounds = server.run()
        first, vector = next(rounds), server.state.vector
        second = next(rounds)
    assert (first["counted"], first["refused"]) == (2, 1)
    assert (second["counted"], second["refused"]) == (3, 0)
    (refused,) = [event for event in seen if event.kind == "refused"]
    assert (refused.node, refused.round) == ("bob", 1)
    assert reason in str(refused.facts["why"])
    assert first["up_bytes"] > sum(site["up_bytes"] for site in first["sites"].values())

    absent = Tampering(world.clients(None))
    absent.tamper = lambda node, data: None if node == "bob" and world.round_of(data) == 1 else data
    with Journal(tmp_path / "absent") as journal:
        other = Server(replace(plan, rounds=1), SPACE, START, absent, journal)
        list(other.run())
    assert torch.equal(vector, other.state.vector), "a refused update left a trace"


def test_a_huge_but_finite_update_is_refused_by_its_norm(tmp_path: Path) -> None:
    class Exploding(world.Puller):
        def train(self, jobs):
            for trained in super().train(jobs):
                yield replace(trained, vector=trained.vector * 1e30)

    handlers = world.clients(None)
    handlers["bob"]._trainer = Exploding()
    with Journal(tmp_path / "journal") as journal:
        server = Server(replace(PLAN, rounds=1, quorum=0.5), SPACE, START, MemoryTransport(handlers), journal)
        (metrics,) = server.run()
        (record,) = journal.of("REFUSE", 1)
    assert metrics["counted"] == 2
    assert "norm: expected an L2 norm of at most 10000" in record["why"]


def test_a_duplicate_is_counted_once(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))
    transport.tamper = lambda node, data: [data, data]
    with Journal(tmp_path / "journal") as journal:
        server = Server(replace(PLAN, rounds=1), SPACE, START, transport, journal)
        (metrics,) = server.run()
        assert {record["why"].split(":")[0] for record in journal.of("REFUSE", 1)} == {"duplicate"}
    plain = run(replace(PLAN, rounds=1), tmp_path / "plain")[0]
    assert metrics["counted"] == 3
    assert torch.equal(server.state.vector, plain.state.vector)


def test_who_was_not_asked_is_not_counted(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))
    with Journal(tmp_path / "journal") as journal:
        server = Server(replace(PLAN, rounds=1), SPACE, START, transport, journal)
        genuine = transport.exchange

        def with_a_stranger(requests, deadline_s):
            for arrival in genuine(requests, deadline_s):
                yield arrival
                yield replace(arrival, node="eve")

        transport.exchange = with_a_stranger  # type: ignore[method-assign]
        (metrics,) = server.run()
        assert all(record["why"].startswith("not asked") for record in journal.of("REFUSE", 1))
    assert metrics["counted"] == 3


def test_below_quorum_nothing_changes_and_the_message_says_why(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    transport.tamper = lambda node, data: None if node == "bob" else data
    with Journal(tmp_path / "journal") as journal:
        server = world.server(PLAN, transport, journal)
        with pytest.raises(QuorumError, match=r"round 1: 2 of 3 clients were counted, 3 needed"):
            next(server.run())
        assert server.state.round == 0
    transport.tamper = lambda node, data: data
    with Journal(tmp_path / "journal") as journal:
        resumed = world.server(PLAN, transport, journal)
        list(resumed.run())
    assert torch.equal(resumed.state.vector, run(PLAN, tmp_path / "plain")[0].state.vector)


def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(PLAN, deadline_s=1e-9), MemoryTransport(world.clients(None)), journal)
        with pytest.raises(QuorumError, match="nobody else answered within 1e-09 s"):
            next(server.run())


def test_a_reply_after_the_deadline_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers, clock = world.clients(tmp_path / "sites"), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(MemoryTransport):
        def exchange(self, requests, deadline_s):
            for arrival in super().exchange(requests, deadline_s):
                if arrival.node == "cat" and world.round_of(arrival.data) == 1:
                    clock[0] += 61
                yield arrival

    seen: list[Event] = []
    plan = replace(PLAN, rounds=2, quorum=0.6, deadline_s=60)
    with Journal(tmp_path / "journal") as journal:
        server = Server(plan, SPACE, START, Slow(handlers), journal, watch=seen.append)
        first, second = server.run()
    assert (first["counted"], first["refused"], second["counted"]) == (2, 1, 3)
    (refused,) = [event for event in seen if event.kind == "refused"]
    assert (refused.node, refused.facts["why"]) == ("cat", "late: round 1 waits 60 s for replies")


def test_a_failing_site_shows_its_traceback(tmp_path: Path) -> None:
    class Broken(world.Puller):
        def train(self, jobs):
            raise ZeroDivisionError("the site's GPU is on fire")

    handlers = world.clients(None)
    handlers["cat"]._trainer = Broken()
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(SiteError, match="(?s)site 'cat' failed.*in train.*on fire"),
    ):
        list(world.server(PLAN, MemoryTransport(handlers), journal).run())
    with Journal(tmp_path / "again") as journal:
        rows = list(world.server(replace(PLAN, quorum=0.6), MemoryTransport(handlers), journal).run())
    assert [row["counted"] for row in rows] == [2] * 4


def test_training_that_diverges_is_a_failure_and_not_an_update(tmp_path: Path) -> None:
    class Diverging(world.Puller):
        def train(self, jobs):
            for trained in super().train(jobs):
                yield replace(trained, vector=trained.vector / 0)

    handlers = world.clients(None)
    handlers["cat"]._trainer = Diverging()
    with Journal(tmp_path / "journal") as journal, pytest.raises(SiteError, match="training diverged in round 1"):
        list(world.server(PLAN, MemoryTransport(handlers), journal).run())


def test_a_site_of_another_space_is_refused_by_slot(tmp_path: Path) -> None:
    other = Space((Slot("a", (4, 5), "lora_A"), *SPACE.slots[1:]), SPACE.config, SPACE.base)
    handlers = world.clients(None)
    handlers["bob"] = Client(world.Puller(), world.examples(1, 3), other, ClientStore(None, other))
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(QuorumError, match=r"bob: other space: slot 'a': expected shape \(3, 5\).*got \(4, 5\)"),
    ):
        list(world.server(PLAN, MemoryTransport(handlers), journal).run())


def test_a_journal_of_another_space_is_refused(tmp_path: Path) -> None:
    run(PLAN, tmp_path)
    other = Space((*SPACE.slots[:2], Slot("head", (800,), "head")), SPACE.config, SPACE.base)
    with Journal(tmp_path / "journal") as journal, pytest.raises(JournalError, match=r"of another run: slot 'head'"):
        Server(PLAN, other, torch.zeros(other.numel), MemoryTransport({}), journal)


def test_nobody_to_ask_is_said(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal, pytest.raises(QuorumError, match="no client to ask"):
        list(world.server(PLAN, MemoryTransport({}), journal).run())


def test_metrics_count_bytes_as_sent(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    up: dict[int, int] = {}

    def count(node: str, data: bytes) -> bytes:
        number = world.round_of(data)
        up[number] = up.get(number, 0) + len(data)
        return data

    transport.tamper = count
    with Journal(tmp_path / "journal") as journal:
        rows = list(world.server(PLAN, transport, journal).run())
    for row in rows:
        assert row["up_bytes"] == up[row["round"]]
        assert row["down_bytes"] == sum(task.ByteSize() for _, task in transport.asked if task.round == row["round"])
        assert row["up_bytes_fp32"] == row["down_bytes_fp32"] == 3 * 4 * SPACE.numel
        assert {"round", "loss", "accuracy"} <= row.keys()
        json.dumps(row)


def test_the_learning_rate_follows_its_schedule() -> None:
    for schedule, last in (("constant", 1.0), ("linear", 0.1), ("cosine", 0.12202)):
        plan = Plan(rounds=10, settings=Settings(learning_rate=1.0), schedule=schedule)
        rates = [plan.learning_rate(number) for number in range(1, 11)]
        assert rates[0] == 1.0
        assert rates[-1] == pytest.approx(last, abs=1e-4)
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    "expression",
    ["SGD(lr=1.0)", "SGD(lr=0.7, momentum=0.9, nesterov=True)", "Adam(lr=0.01)", "AdamW(lr=0.01)", "Adagrad(lr=0.1)"],
)
def test_a_server_optimizer_in_pure_steps_is_the_one_of_torch(expression: str) -> None:
    ours, state = START.clone(), {}
    theirs = torch.nn.Parameter(START.clone())
    optimizer = eval(f"torch.optim.{expression.replace('(', '([theirs], ', 1)}")
    step = ServerOptimizer(expression).step
    for k in range(5):
        delta = torch.sin(START * (k + 1))
        ours, state = step(ours, delta, state)
        theirs.grad = -delta
        optimizer.step()
        assert torch.equal(ours, theirs.detach())


@pytest.mark.parametrize(
    "expression",
    [
        "SGD(lr=0.7, momentum=0.9, nesterov=True)",
        "SGD(lr=0.7, momentum=0.9, dampening=0.5)",
        "Adagrad(lr=0.1, initial_accumulator_value=0.3)",
        "Adam(lr=0.1)",
        "Rprop(lr=0.1)",
        "SGD(lr=1.0)",
    ],
)
def test_a_step_within_a_fragment_is_the_fragment_s_own(expression: str) -> None:
    step, state, ours = ServerOptimizer(expression).step, {}, START.clone()
    fragments = [torch.arange(SPACE.numel) % 3 == i for i in range(3)]
    apart = [(START[within], {}) for within in fragments]
    for k in range(7):
        delta = torch.sin(START * (k + 1))
        ours, state = step(ours, delta, state, fragments[k % 3])
        vector, own = apart[k % 3]
        apart[k % 3] = step(vector, delta[fragments[k % 3]], own)
        for within, (vector, _) in zip(fragments, apart, strict=True):
            assert torch.equal(ours[within], vector)


def test_a_round_leaves_the_slots_alone_that_it_does_not_carry(tmp_path: Path) -> None:
    fragments = Fragments(Identity(), count=3)
    optimizer = ServerOptimizer("SGD(lr=0.7, momentum=0.9)")
    with Journal(tmp_path / "journal") as journal:
        transport = MemoryTransport(world.clients(tmp_path / "sites"))
        server = world.server(Plan(rounds=6, codec=ErrorFeedback(fragments), optimizer=optimizer), transport, journal)
        before = server.state.vector
        for row in server.run():
            carried = fragments.carried(SPACE, Context(round=row["round"]))
            for slot in SPACE.slots:
                same = torch.equal(SPACE.view(server.state.vector, slot.name), SPACE.view(before, slot.name))
                assert same == (slot not in carried.slots)
            before = server.state.vector


def test_what_a_codec_chose_is_told(tmp_path: Path) -> None:
    told: list[Event] = []
    plan = replace(PLAN, rounds=1, codec=ErrorFeedback(Budget(600)))
    with Journal(tmp_path / "journal") as journal:
        transport = MemoryTransport(world.clients(tmp_path / "sites"))
        list(Server(plan, SPACE, START, transport, journal, watch=told.append).run())
    chosen = [event.facts["chosen"] for event in told if event.kind == "counted"]
    assert len(chosen) == 3
    for words in chosen:
        counts = [part.split() for part in words.split(", ")]
        assert sum(int(count) for count, _, _, _ in counts) == len(SPACE.slots)
        for _, _, what, kept in counts:
            assert what in ("nothing", "ternary", "levels") and kept[-1] == "%"
            assert (float(kept[:-1]) > 0) == (what != "nothing")


def test_a_site_trains_on_from_its_own_parameters(tmp_path: Path) -> None:
    clients = world.clients(tmp_path / "sites")
    plan = replace(PLAN, rounds=3, settings=Settings(start="own"))
    with Journal(tmp_path / "journal") as journal:
        for row in world.server(plan, MemoryTransport(clients), journal).run():
            for client in clients.values():
                job, state = client._trainer.jobs[-1], client._store.load()
                if row["round"] > 1:
                    assert torch.equal(job.start, state.adapter + kept[id(client)])
            kept = {id(client): client._store.load().residual for client in clients.values()}
    assert all(residual.any() for residual in kept.values())


def test_fedavg_is_sgd_with_learning_rate_one() -> None:
    moved, _ = ServerOptimizer("SGD(lr=1.0)").step(START, torch.ones_like(START), {})
    assert torch.equal(moved, START + 1)


def test_steps_that_are_out_of_range_are_left_out_and_three_in_a_row_stop_the_run(tmp_path: Path) -> None:
    plan, events = Plan(rounds=9, optimizer=ServerOptimizer("SGD(lr=1e6)")), []
    with Journal(tmp_path / "journal") as journal:
        transport = MemoryTransport(world.clients(None))
        server = Server(plan, SPACE, START, transport, journal, watch=events.append)
        with pytest.raises(RunError, match="3 rounds in a row were left out: .* fp16; lower the learning rates"):
            list(server.run())
        rows = server.history()
    assert torch.equal(server.state.vector, START) and server.state.round == 3
    assert all("beyond the range of fp16" in row["left_out"] and row["product_error"] is None for row in rows)
    alarms = [event for event in events if event.kind is Happening.ALARM]
    assert [event.round for event in alarms] == [1, 2, 3] and "was left out" in str(alarms[0].facts["why"])


@pytest.mark.parametrize("error", [LinAlgError("singular"), PayloadError(Defect.NON_FINITE, "infinity")], ids=repr)
def test_a_merge_that_fails_costs_its_round_and_the_run_can_be_taken_up(tmp_path: Path, error: Exception) -> None:
    class Failing(strategies.Mean):
        def merge(self, updates, ctx):
            if ctx.round == 2:
                raise error
            return super().merge(updates, ctx)

    plan = replace(LOSSLESS, strategy=Failing())
    vectors = []
    for folder, stops in (("whole", (4,)), ("parts", (1, 2, 4))):
        transport = MemoryTransport(world.clients(tmp_path / folder))
        for stop in stops:
            with Journal(tmp_path / folder / "journal") as journal:
                server = world.server(plan, transport, journal)
                while server.state.round < stop:
                    next(server.run())
        vectors.append(server.state.vector)
        assert [bool(row["left_out"]) for row in server.history()] == [False, True, False, False]
    assert torch.equal(*vectors) and not torch.equal(vectors[0], START)


def test_payloads_name_round_client_and_codec(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))
    seen = []

    def look(node: str, data: bytes) -> bytes:
        seen.append((node, wire.inspect(messages.split(data)[1])[0]))
        return data

    transport.tamper = look
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(LOSSLESS, rounds=1), transport, journal).run())
    assert [(node, header.client, header.round, header.codec) for node, header in seen] == [
        (node, number, 1, repr(Identity())) for number, node in enumerate(("ann", "bob", "cat"), 1)
    ]


def test_a_site_that_diverged_once_begins_anew(tmp_path: Path) -> None:
    """An update beyond the norm cap is not carried over: it would be refused for ever."""

    class Once(world.Puller):
        def train(self, jobs):
            for trained in super().train(jobs):
                yield replace(trained, vector=trained.vector * 1e9) if len(self.jobs) == 1 else trained

    handlers = world.clients(tmp_path / "sites")
    handlers["bob"]._trainer = Once()
    with Journal(tmp_path / "journal") as journal:
        rows = list(world.server(replace(PLAN, quorum=0.5), MemoryTransport(handlers), journal).run())
    assert [row["counted"] for row in rows] == [2, 3, 3, 3]


def test_a_backup_of_an_older_state_does_not_bring_a_counted_update_again(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    path = tmp_path / "sites" / "bob"
    with Journal(tmp_path / "journal") as journal:
        rounds = world.server(PLAN, transport, journal).run()
        next(rounds)
        backup = path.read_bytes()
        residual = transport._handlers["bob"]._store.load().residual
        next(rounds)
        path.write_bytes(backup)
        client, task = transport._handlers["bob"], pb.Task(run=client_run(transport), counted=2)
        assert torch.equal(client._reclaim(client._store.load(), task).residual, residual)


def client_run(transport: Tampering) -> bytes:
    return transport.asked[0][1].run


def test_a_refusal_holds_when_the_round_is_taken_up_again(tmp_path: Path) -> None:
    """Killed between a refusal and the close: who was refused is not asked again, so the bits are the same."""
    plan = replace(PLAN, rounds=1, quorum=0.6)
    vectors = []
    for folder, killed in (("a", False), ("b", True)):
        transport = Tampering(world.clients(tmp_path / folder / "sites"))
        transport.tamper = lambda node, data: b"\xff" if node == "bob" else data
        with Journal(tmp_path / folder / "journal") as journal:
            if killed:
                genuine = journal.append

                def dying(kind: str, /, append=genuine, **fields: object) -> None:
                    if kind == "CLOSE":
                        raise KeyboardInterrupt
                    append(kind, **fields)

                journal.append = dying  # type: ignore[method-assign]
                with pytest.raises(KeyboardInterrupt):
                    list(world.server(plan, transport, journal).run())
                journal.append = genuine  # type: ignore[method-assign]
                transport.tamper = lambda node, data: data
            server = world.server(plan, transport, journal)
            (row,) = server.run()
            assert row["counted"] == 2
            vectors.append(server.state.vector)
    assert torch.equal(*vectors)


def test_below_quorum_the_next_attempt_asks_all_who_are_missing(tmp_path: Path) -> None:
    transport = Tampering(world.clients(tmp_path / "sites"))
    transport.tamper = lambda node, data: b"\xff" if node == "bob" else data
    with Journal(tmp_path / "journal") as journal:
        server = world.server(PLAN, transport, journal)
        with pytest.raises(QuorumError, match="bob: bad payload"):
            next(server.run())
        transport.tamper = lambda node, data: data
        assert next(server.run())["counted"] == 3


def test_only_known_and_finite_metrics_are_kept_of_a_reply(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))

    def boast(node: str, data: bytes) -> bytes:
        message, payload = messages.split(data)
        message.update.metrics.update(
            {f"made up {i}": 1.0 for i in range(100)} | {"train_s": 1.7e308, "loss": float("nan")}
        )
        return messages.join(message, payload)

    transport.tamper = boast
    with Journal(tmp_path / "journal") as journal:
        (row,) = world.server(replace(PLAN, rounds=1), transport, journal).run()
        assert all(set(record["metrics"]) <= {"loss", "encode_s"} for record in journal.of("ACCEPT", 1))
    json.loads(json.dumps(row, allow_nan=False))


def test_an_oversized_reply_is_refused_before_it_is_read(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))
    transport.tamper = lambda node, data: data + bytes(10_000_000) if node == "bob" else data
    with Journal(tmp_path / "journal") as journal:
        (row,) = world.server(replace(PLAN, rounds=1, quorum=0.6), transport, journal).run()
        (record,) = journal.of("REFUSE", 1)
    assert (row["counted"], row["refused"]) == (2, 1)
    assert record["why"].startswith("bad payload: too large")


@pytest.mark.parametrize("broadcast", [Identity("float16"), Ternary(density=0.05), Uniform(bits=2)], ids=repr)
def test_the_public_adapter_stays_in_the_range_of_fp16(tmp_path: Path, broadcast: codecs.Codec) -> None:
    plan = Plan(rounds=6, broadcast=broadcast, optimizer=ServerOptimizer("SGD(lr=65000.0)"), largest_norm=1e9)
    goal = {1: 1.0, 2: -1.0}

    class To(world.Puller):
        def train(self, jobs):
            for job in jobs:
                yield replace(next(super().train([job])), vector=job.start + goal.get(job.order.round, 0.0))

    handlers = world.clients(None)
    for client in handlers.values():
        client._trainer = To()
    with Journal(tmp_path / "journal") as journal:
        server = Server(plan, SPACE, torch.zeros(SPACE.numel), MemoryTransport(handlers), journal)
        list(server.run())
    assert float(server.state.public.abs().max()) <= 65504


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must lie"),
        ({"quorum": 5.0}, "quorum must lie"),
        ({"schedule": "cosin"}, "schedule must be"),
        ({"seed": 1 << 70}, "seed must lie"),
    ],
)
def test_a_plan_checks_its_numbers(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)


def test_a_quorum_is_a_fraction_and_not_its_rounding() -> None:
    assert Plan(rounds=1, quorum=0.07).needed(100) == 7
    assert Plan(rounds=1, quorum=0.5).needed(3) == 2


def test_a_strategy_that_does_not_fit_the_plan_is_refused_at_once() -> None:
    class OfAdapters(strategies.Mean):
        anchored = True

    class OfFive(strategies.Mean):
        least = 5

    with pytest.raises(ValueError, match="merges adapters that began at one start, and with buffer: 2 they do not"):
        replace(PLAN, strategy=OfAdapters(), buffer=2)
    with pytest.raises(ValueError, match="merges at least 5 updates, and 3 are asked for"):
        replace(PLAN, strategy=OfFive(), sites=3)
    assert Plan(rounds=1, quorum=0.1, strategy=OfFive()).needed(10) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": strategies.FLTrust()}, "needs a delta trained on data that the server"),
        ({"strategy": strategies.TIES(weights="peft")}, "cannot merge in a run: weights='peft' multiplies each update"),
        ({"strategy": strategies.Scaled(strategies.TIES(weights="peft"), 2.0)}, "cannot merge in a run"),
        ({"strategy": strategies.FlexLoRA(), "optimizer": ServerOptimizer("Adam(lr=0.1)")}, "would go elsewhere"),
        ({"strategy": strategies.RidgeHead(strategies.Mean()), "optimizer": ServerOptimizer("SGD(lr=2.0)")}, "Scaled"),
        ({"strategy": strategies.RankVote()}, "merges the scores of a supermask; set training.supermask"),
        ({"strategy": strategies.FlexLoRA(), "settings": Settings(supermask=0.5)}, "set supermask: 0"),
    ],
)
def test_what_a_strategy_declares_is_held_against_the_plan(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)


@pytest.mark.parametrize(
    ("strategy", "codec", "message"),
    [
        (strategies.by_slot({"nope": strategies.Mean()}, default=strategies.Mean()), Identity(), "'nope' fits no slot"),
        (
            strategies.by_slot({"head": strategies.RegMean()}, default=strategies.Mean()),
            Identity(),
            "'gram' is of the B",
        ),
        (
            strategies.FlexLoRA(),
            Turns(Identity(), ("lora_B", "lora_A")),
            r"says where '[\w.]+lora_A[\w.]*' shall be, which Turns.* does not carry in round 1",
        ),
    ],
)
def test_what_does_not_fit_the_space_is_said_before_the_first_round(tmp_path: Path, strategy, codec, message) -> None:
    slots = [Slot(f"q.lora_{ab}.weight", shape, f"lora_{ab}") for ab, shape in (("A", (2, 4)), ("B", (3, 2)))]
    space = Space((*slots, Slot("score.weight", (2, 3), "head")))
    with Journal(tmp_path / "journal") as journal, pytest.raises(ValueError, match=message):
        Server(Plan(4, strategy=strategy, codec=codec), space, torch.zeros(space.numel), MemoryTransport({}), journal)


def test_a_strategy_that_is_no_sum_reads_the_counted_updates_as_a_sequence(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Last(strategies.Strategy):
        def merge(self, updates, ctx):
            assert len(updates) == 3 and [u.weight for u in updates[:2]] == [u.weight for u in updates][:2]
            assert torch.equal(ctx.adapter(updates[-1]), ctx.start + updates[-1].delta)
            return updates[-1].delta

    first = replace(PLAN, rounds=1, strategy=Last(), codec=Ternary(density=0.3))
    moved = run(first, tmp_path / "last")[0].state.vector
    assert not torch.equal(moved, run(replace(first, strategy=strategies.Mean()), tmp_path / "mean")[0].state.vector)


def test_a_run_of_other_rules_is_not_taken_up(tmp_path: Path) -> None:
    run(replace(PLAN, rounds=1), tmp_path)
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(JournalError, match="of another run: it began as Plan"),
    ):
        world.server(replace(PLAN, seed=9), MemoryTransport(world.clients(None)), journal)


def test_a_task_with_settings_out_of_range_is_refused(tmp_path: Path) -> None:
    transport = Tampering(world.clients(None))
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(PLAN, rounds=1), transport, journal).run())
    task = transport.asked[0][1]
    task.settings.local_steps = (1 << 32) - 1
    answer, _ = messages.split(world.clients(None)["ann"](task.SerializeToString()))
    assert answer.refusal.reason == "policy"
    assert "local_steps must lie in [0, 100000], got 4294967295" in answer.refusal.detail


def test_a_round_taken_up_again_asks_who_is_there_then(tmp_path: Path) -> None:
    """A site that left for good does not hold an open round for ever: who has come since is asked instead."""
    transport = Tampering(world.clients(tmp_path / "sites", ("ann", "bob", "cat", "dan")))
    present = ["ann", "bob", "cat"]
    transport.nodes = lambda: sorted(present)  # type: ignore[method-assign]
    transport.tamper = lambda node, data: None if node == "cat" else data
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(PLAN, sites=3, rounds=2), transport, journal)
        with pytest.raises(QuorumError, match="2 of 3 clients were counted, 3 needed"):
            next(server.run())
        present[:] = ["ann", "bob", "dan"]
        first, second = server.run()
    assert set(first["sites"]) == set(second["sites"]) == {"ann", "bob", "dan"}
    assert [node for node, task in transport.asked if task.round == 1] == ["ann", "bob", "cat", "dan"]


def test_a_quorum_is_of_the_sites_and_not_of_whoever_came(tmp_path: Path) -> None:
    plan = replace(PLAN, rounds=1, sites=5, quorum=0.6)
    assert (plan.needed(3), plan.needed(5)) == (3, 3)
    transport = Tampering(world.clients(tmp_path / "sites"))
    transport.tamper = lambda node, data: None if node == "cat" else data
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(QuorumError, match="2 of 3 clients were counted, 3 need"),
    ):
        next(world.server(plan, transport, journal).run())


def test_how_long_and_for_whom_a_round_waits_may_change(tmp_path: Path) -> None:
    run(replace(PLAN, rounds=1), tmp_path)
    with Journal(tmp_path / "journal") as journal:
        plan = replace(PLAN, rounds=2, sites=3, quorum=0.5, deadline_s=7.0)
        assert len(list(world.server(plan, MemoryTransport(world.clients(tmp_path / "sites")), journal).run())) == 1


def test_a_site_that_lost_its_adapter_is_asked_again_while_others_still_work(tmp_path: Path) -> None:
    class Slow(Tampering):
        """Cat answers only once bob, who lost his adapter, was counted."""

        def exchange(self, requests, deadline_s):
            first = {node: request for node, request in requests.items() if node != "cat"} or requests
            yield from super().exchange(first, deadline_s)
            if first != requests:
                yield from super().exchange({"cat": requests["cat"]}, deadline_s)

    transport = Slow(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        rounds = world.server(PLAN, transport, journal).run()
        next(rounds)
        (tmp_path / "sites" / "bob").unlink()
        assert next(rounds)["counted"] == 3
        order = [record["node"] for record in world.log(journal) if record["kind"] == "ACCEPT" and record["round"] == 2]
    assert order == ["ann", "bob", "cat"]


def test_a_journal_in_memory_does_not_grow_with_what_only_open_rounds_need(tmp_path: Path) -> None:
    transport = MemoryTransport(world.clients(tmp_path / "sites"))
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(PLAN, rounds=6), transport, journal).run())
        kinds = [record["kind"] for record in journal.records if record.get("round", 0) < 6]
        assert set(kinds) == {"BEGIN", "OPEN", "COMMIT"}
        assert len(world.log(journal)) > 2 * len(journal.records)
