"""Statistics on their way: asked for, sent, checked to the last bit, kept, and merged by; what is wrong is refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Context, ErrorFeedback, Identity, Numbers, Ternary
from fedpeft.config import PolicySection
from fedpeft.errors import QuorumError, RefusedError
from fedpeft.federation import Client, ClientStore, Journal, Plan, Policy, Server, broadcast, largest_reply, messages
from fedpeft.federation import statistics as beside
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from fedpeft.strategies import Context as Merging
from fedpeft.strategies import Fisher, Mean, RegMean, Strategy, Update
from fedpeft.strategies.statistics import statistic_space
from fedpeft.training import Encoded, Job
from tests.federation import world
from tests.federation.world import SPACE, START, Tampering

NAMES = ("ann", "bob", "cat")
BOTH = [Fisher(), RegMean()]


class Measurer(world.Puller):
    """A puller that says of its adapter what the job's streams make up."""

    def statistics(self, job: Job, names: Sequence[str], examples: int) -> Mapping[str, torch.Tensor]:
        made = {"fisher": torch.from_numpy(job.order.normal(SPACE.numel) ** 2 * job.start.abs().numpy()).float()}
        z = job.dropout.normal(2 * 5).reshape(5, 2)
        made["gram"] = torch.from_numpy(z.T @ z / 5).float().reshape(-1)
        return {name: made[name] for name in names}


def clients(folder: Path | None, trainer: Callable[[], world.Puller] = Measurer) -> dict[str, Client]:
    made = world.clients(folder)
    for client in made.values():
        client._trainer = trainer()
    return made


def run(plan: Plan, folder: Path, tamper: Callable[[str, bytes], bytes | None] = lambda node, data: data) -> Server:
    transport = Tampering(clients(folder / "sites"))
    transport.tamper = tamper
    with Journal(folder / "journal") as journal:
        server = Server(plan, SPACE, START, transport, journal)
        list(server.run())
    return server


@pytest.mark.parametrize("strategy", BOTH, ids=repr)
def test_a_round_merges_by_what_the_sites_measured(tmp_path: Path, strategy: Strategy) -> None:
    heard: dict[str, bytes] = {}
    plan = Plan(rounds=1, strategy=strategy)
    server = run(plan, tmp_path, lambda node, data: heard.setdefault(node, data))
    space, ctx, cohort = SPACE, Context(0, 1), []
    for i, name in enumerate(NAMES):
        head, payloads = messages.split(heard[name])
        payload, (statistic,) = messages.cut(head.update, payloads)
        sender = replace(ctx, client=i + 1)
        (needed,) = strategy.needs
        delta = broadcast.unpack(payload, Identity(), space, server.state.run, sender)
        measured = beside.unpack(needed, statistic, space, server.state.run, sender)
        trained = START.half().float() + delta
        job = Job(trained, world.examples(i, 1), plan.settings, *_streams(i + 1))
        assert torch.allclose(measured, Measurer().statistics(job, [needed], 1)[needed], rtol=2**-8)
        cohort.append(Update(delta, 2 * i + 1.0, {needed: measured}))
    expected = strategy.merge(cohort, Merging(SPACE, START.half().float()))
    assert torch.equal(server.state.vector, START + expected)
    assert not torch.allclose(expected, Mean().merge(cohort, Merging(SPACE)), atol=1e-3)
    assert len(heard["ann"]) < largest_reply(plan, SPACE)
    assert largest_reply(plan, SPACE) > largest_reply(replace(plan, strategy=Mean()), SPACE)


def _streams(client: int) -> Iterator[Stream]:
    return (Stream(0, purpose, 1, client, part=1) for purpose in (Purpose.DATA, Purpose.DROPOUT))


class Interrupted(Exception):
    """The server is killed here."""


@pytest.mark.parametrize("strategy", BOTH, ids=repr)
def test_a_server_killed_in_any_round_ends_in_the_same_bits(tmp_path: Path, strategy: Strategy) -> None:
    plan = Plan(rounds=3, strategy=strategy, codec=ErrorFeedback(Ternary(density=0.3)))
    whole = run(plan, tmp_path / "whole").state.vector
    for after in range(1, 9):
        folder, seen = tmp_path / str(after), []

        def dies(node: str, data: bytes, seen: list[str] = seen, after: int = after) -> bytes:
            seen.append(node)
            if len(seen) > after:
                raise Interrupted
            return data

        with pytest.raises(Interrupted):
            run(plan, folder, dies)
        assert torch.equal(run(plan, folder).state.vector, whole)


@pytest.mark.parametrize("strategy", BOTH, ids=repr)
def test_a_buffer_merges_statistics_of_older_rounds(tmp_path: Path, strategy: Strategy) -> None:
    server = run(Plan(rounds=6, strategy=strategy, buffer=1), tmp_path)
    with Journal(tmp_path / "journal") as journal:
        accepted = [record for record in world.log(journal) if record["kind"] == "ACCEPT"]
    assert any(record["base"] < record["round"] for record in accepted)
    assert all(record["statistics"].keys() == strategy.needs for record in accepted)
    assert torch.isfinite(server.state.vector).all()


def packed(name: str, vector: torch.Tensor, data: bytes, round_number: int = 1, space: Space = SPACE) -> bytes:
    """The payload of a statistic as the second client would send it, whatever it holds."""
    codec = beside._CODECS[name]
    own = beside.sent_space(name, space)
    parts = codec.encode(vector, own, Context())
    run_name = messages.split(data)[0].run
    return broadcast.pack(parts, codec, own, run_name, Context(0, round_number, 2))


def with_statistics(data: bytes, *payloads: bytes, sizes: Sequence[int] | None = None) -> bytes:
    head, rest = messages.split(data)
    payload, _ = messages.cut(head.update, rest)
    del head.update.sizes[:]
    head.update.sizes.extend(sizes if sizes is not None else map(len, payloads))
    return messages.join(head, payload, *payloads)


def of_update(data: bytes) -> bytes:
    head, rest = messages.split(data)
    return bytes(messages.cut(head.update, rest)[0])


def own_statistic(data: bytes) -> bytes:
    head, rest = messages.split(data)
    return bytes(messages.cut(head.update, rest)[1][0])


def not_a_number(data: bytes) -> bytes:
    """A Gram whose checksum is right, and in which two numbers are none."""
    space, parts = beside.sent_space("gram", SPACE), {"values": Numbers(np.array([1, np.nan, 1], np.float32))}
    return broadcast.pack(parts, beside._CODECS["gram"], space, messages.split(data)[0].run, Context(0, 1, 2))


def sent_whole(data: bytes, disguised: bool = False) -> bytes:
    """A Gram of which both triangles travel."""
    whole, run_name, ctx = statistic_space("gram", SPACE), messages.split(data)[0].run, Context(0, 1, 2)
    parts, codec = {"values": Numbers(np.array([1, 0, 0, 1], np.float32))}, beside._CODECS["gram"]
    return broadcast.pack(parts, codec, beside.sent_space("gram", SPACE) if disguised else whole, run_name, ctx)


FISHER, GRAM = torch.ones(SPACE.numel), torch.tensor([1.0, 0.0, 1.0])
OTHER = Space(SPACE.slots, SPACE.config, "cd" * 32)
HOSTILE = {
    "no statistic": (Fisher(), lambda d: with_statistics(d), "statistic: expected fisher, got 0 beside the update"),
    "one too many": (
        Fisher(),
        lambda d: with_statistics(d, own_statistic(d), own_statistic(d)),
        "statistic: expected fisher, got 2 beside the update",
    ),
    "an unasked one": (Mean(), lambda d: with_statistics(d, packed("gram", GRAM, d)), "expected none, got 1 beside"),
    "an empty one": (Fisher(), lambda d: with_statistics(d, b""), "empty"),
    "a cut one": (Fisher(), lambda d: with_statistics(d, own_statistic(d)[:-1]), "malformed"),
    "one byte more": (RegMean(), lambda d: with_statistics(d, own_statistic(d) + b"0"), "bad payload"),
    "a size beyond the bytes": (
        Fisher(),
        lambda d: with_statistics(d, sizes=[1 << 40]),
        "size: statistics of 10995116",
    ),
    "a size that takes from the update": (
        Fisher(),
        lambda d: with_statistics(d, own_statistic(d), sizes=[len(own_statistic(d)) + 1]),
        "bad payload",
    ),
    "many sizes": (Fisher(), lambda d: with_statistics(d, sizes=[0] * 9999), "got 9999 beside the update"),
    "sizes that overflow": (Fisher(), lambda d: with_statistics(d, sizes=[(1 << 64) - 1] * 3), "size: statistics of"),
    "the update again": (Fisher(), lambda d: with_statistics(d, of_update(d)), "bad payload"),
    "another statistic": (Fisher(), lambda d: with_statistics(d, packed("gram", GRAM, d)), "fingerprint"),
    "of another base": (Fisher(), lambda d: with_statistics(d, packed("fisher", FISHER, d, 1, OTHER)), "fingerprint"),
    "of another round": (Fisher(), lambda d: with_statistics(d, packed("fisher", FISHER, d, 2)), "round"),
    "a negative Fisher": (
        Fisher(),
        lambda d: with_statistics(d, packed("fisher", FISHER.index_fill(0, torch.tensor([7]), -1e-9), d)),
        "statistic: 'fisher': expected at least 0 everywhere",
    ),
    "a Gram sent whole": (RegMean(), lambda d: with_statistics(d, sent_whole(d)), "fingerprint"),
    "a Gram sent whole as if it were half": (
        RegMean(),
        lambda d: with_statistics(d, sent_whole(d, True)),
        "expected 3 numbers, got 4",
    ),
    "a Gram that is none": (
        RegMean(),
        lambda d: with_statistics(d, packed("gram", torch.tensor([1.0, 2.0, 1.0]), d)),
        "statistic: 'gram' of 'b': expected eigenvalues of at least 0, got -1",
    ),
    "a Gram that is not a number": (RegMean(), lambda d: with_statistics(d, not_a_number(d)), "non-finite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_statistic_is_refused_with_its_reason_and_leaves_no_trace(tmp_path: Path, name: str) -> None:
    strategy, forge, reason = HOSTILE[name]
    plan = Plan(rounds=1, strategy=strategy, quorum=0.6)
    transport = Tampering(clients(None))
    transport.tamper = lambda node, data: forge(data) if node == "bob" else data
    with Journal(tmp_path / "journal") as journal:
        server = Server(plan, SPACE, START, transport, journal)
        (metrics,) = server.run()
        (refused,) = journal.of("REFUSE", 1)
    assert metrics["counted"] == 2
    assert refused["why"].startswith("bad payload: ")
    assert reason in refused["why"]
    absent = run(plan, tmp_path / "absent", lambda node, data: None if node == "bob" else data)
    assert torch.equal(server.state.vector, absent.state.vector)


def test_a_site_whose_trainer_measures_nothing_says_so_before_it_trains(tmp_path: Path) -> None:
    handlers = clients(tmp_path, world.Puller)
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(
            QuorumError, match="policy: statistics: Puller, this site's trainer, measures none, was asked for"
        ),
    ):
        list(world.server(Plan(rounds=1, strategy=Fisher()), Tampering(handlers), journal).run())
    assert not any(client._trainer.jobs for client in handlers.values())
    with Journal(tmp_path / "mean") as journal:
        assert list(world.server(Plan(rounds=1), Tampering(handlers), journal).run())


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        (Policy(), True),
        (Policy(statistics=("fisher",)), True),
        (Policy(statistics=()), False),
        (Policy(statistics=("gram",)), False),
        (PolicySection().policy(), False),
        (PolicySection(statistics=("*",)).policy(), True),
    ],
)
def test_a_site_s_policy_names_the_statistics_that_it_sends(policy: Policy, allowed: bool) -> None:
    trainer = Measurer()
    client = Client(trainer, world.examples(0, 1), SPACE, ClientStore(None, SPACE), policy=policy)
    transport = Tampering({"ann": client})
    answers: list[pb.Reply] = []
    transport.tamper = lambda node, data: answers.append(messages.split(data)[0])
    list(transport.exchange({"ann": _task()}, 1.0))
    (answer,) = answers
    assert bool(trainer.jobs) is allowed
    if not allowed:
        assert answer.refusal.reason == "policy"
        assert "statistics: this site allows" in answer.refusal.detail
        assert answer.refusal.detail.endswith("was asked for fisher")


@pytest.mark.parametrize(
    ("policy", "measured"), [(Policy(), 9), (Policy(most_examples=4), 4), (Policy(most_examples=99), 9)]
)
def test_a_statistic_is_measured_on_no_more_examples_than_the_policy_has(policy: Policy, measured: int) -> None:
    seen: list[tuple[Encoded, int]] = []

    class Counting(Measurer):
        def statistics(self, job: Job, names: Sequence[str], examples: int) -> Mapping[str, torch.Tensor]:
            seen.append((job.data, examples))
            return super().statistics(job, names, examples)

    client = Client(Counting(), world.examples(0, 9), SPACE, ClientStore(None, SPACE), policy=policy)
    assert messages.split(client(_task("gram", "fisher")))[0].HasField("update")
    assert [min(len(data), examples) for data, examples in seen] == [measured] * 2


@pytest.mark.parametrize("name", ["hessian", "", "fisher,gram", "x" * 60_000])
def test_a_statistic_that_there_is_not_is_refused(name: str) -> None:
    client = clients(None)["ann"]
    answer, _ = messages.split(client(_task(name)))
    assert answer.refusal.reason == "policy"
    assert "statistics: there is no statistic" in answer.refusal.detail


def test_what_is_asked_for_twice_is_sent_once() -> None:
    answer, payloads = messages.split(clients(None)["ann"](_task("gram", "fisher", "gram", "fisher")))
    payload, statistics = messages.cut(answer.update, payloads)
    assert len(statistics) == 2
    assert len(payload) + sum(answer.update.sizes) == len(payloads)
    for name, data in zip(("gram", "fisher"), statistics, strict=True):
        beside.unpack(name, data, SPACE, b"r" * 16, Context(0, 1, 1))


def _task(*names: str) -> bytes:
    whole = broadcast.whole(START, SPACE, b"r" * 16, 1)
    task = pb.Task(run=b"r" * 16, round=1, client=1, codec="Identity()", strategy="Fisher()", merged=1)
    task.statistics.extend(names or ("fisher",))
    task.settings.CopyFrom(pb.Settings(local_steps=1, batch_size=1, learning_rate=0.1, labels="all"))
    task.broadcasts.add(to_round=1, payload=whole)
    return task.SerializeToString()


def test_an_update_that_was_not_counted_goes_back_into_the_residual_without_its_statistics(tmp_path: Path) -> None:
    """Fisher or not, a site's error feedback is the same."""
    states = []
    for strategy in (Mean(), Fisher()):
        folder = tmp_path / type(strategy).__name__
        plan = Plan(rounds=3, codec=ErrorFeedback(Ternary(density=0.2)), quorum=0.3, strategy=strategy)
        transport = Tampering(clients(folder))
        transport.tamper = lambda node, data: None if node != "ann" and world.round_of(data) == 1 else data
        with Journal(folder / "journal") as journal:
            next(world.server(plan, transport, journal).run())
            state = transport._handlers["bob"]._store.load()
            task = pb.Task(round=2, client=2, codec=repr(plan.codec))
            states.append(transport._handlers["bob"]._reclaim(state, task).residual)
    assert torch.equal(*states)
    assert float(states[0].norm()) > 0


def test_a_strategy_that_the_adapter_does_not_fit_is_said_at_the_start(tmp_path: Path) -> None:
    space = Space((Slot("head", (3, 4), "head"),))
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(ValueError, match="'gram' is of the B of linear layers' LoRA, and this adapter has none"),
    ):
        Server(Plan(rounds=1, strategy=RegMean()), space, torch.zeros(12), Tampering({}), journal)


def test_a_fisher_keeps_its_range_on_the_wire() -> None:
    """From 1e-30 to 1e30, to two digits; fp16 would have lost nearly all of it."""
    sent = torch.logspace(-30, 30, SPACE.numel)
    (payload,) = beside.pack({"fisher": sent}, SPACE, b"r" * 16, Context(0, 1, 1))
    assert torch.allclose(
        beside.unpack("fisher", payload, SPACE, b"r" * 16, Context(0, 1, 1)), sent, rtol=2**-8, atol=0
    )
    assert len(payload) < 2 * SPACE.numel + 300


def head_of(draw: np.random.Generator, n: int, width: int, classes: int) -> torch.Tensor:
    u = np.concatenate([draw.standard_normal((n, width)), np.ones((n, 1))], 1)
    one_hot = np.eye(classes)[draw.integers(0, classes, n)]
    return torch.from_numpy(np.concatenate([u.T @ u, one_hot.T @ u]) / n).float()


@pytest.mark.parametrize(("width", "classes", "rank"), [(1, 2, 1), (5, 3, 2), (40, 17, 8)])
def test_grams_travel_as_triangles_and_arrive_to_the_bit(width: int, classes: int, rank: int) -> None:
    space = Space((Slot("h", (classes, width), "head"), Slot("m.b", (9, rank), "lora_B")))
    draw = np.random.default_rng(width)
    z = torch.from_numpy(draw.standard_normal((rank, 3 * rank))).float()
    sent = {"head": head_of(draw, 500, width, classes).reshape(-1), "gram": (z @ z.T).reshape(-1)}
    sizes = {"head": (width + 1) * (width + 2) // 2 + classes * (width + 1), "gram": rank * (rank + 1) // 2}
    for name, payload in zip(sent, beside.pack(sent, space, b"r" * 16, Context(0, 1, 1)), strict=True):
        came = beside.unpack(name, payload, space, b"r" * 16, Context(0, 1, 1))
        own = statistic_space(name, space)
        gram = own.view(came, own.slots[0].name)[: own.slots[0].shape[1]]
        assert torch.equal(gram, gram.T) and torch.equal(
            gram.triu(), own.view(sent[name], own.slots[0].name).triu()[: len(gram)]
        )
        assert torch.equal(came.view(own.slots[0].shape)[len(gram) :], sent[name].view(own.slots[0].shape)[len(gram) :])
        assert beside.sent_space(name, space).numel == sizes[name]
        assert 4 * sizes[name] < len(payload) < 4 * sizes[name] + 400
        assert len(payload) <= beside.largest([name], space)


def test_a_class_of_few_examples_is_left_out_and_of_none_nothing_is_measured() -> None:
    data = Encoded(((1,), (2,), (3,), (4,)), (0, 2, 0, 0), (0, 2))
    assert beside.shareable(data, 1) is data
    kept = beside.shareable(data, 2)
    assert (kept.tokens, kept.targets, kept.labels) == (((1,), (3,), (4,)), (0, 0, 0), (0,))
    text = Encoded(((1, 2), (3, 4)), ((1, 2), (3, 4)))
    for few, least in ((data, 4), (text, 3)):
        with pytest.raises(RefusedError, match=f"expected at least {least} examples"):
            beside.shareable(few, least)


def test_what_is_drawn_is_no_more_than_allowed_and_of_a_head_no_class_of_few() -> None:
    order, classes = Stream(0, Purpose.DATA, 1, 1, part=1), tuple(range(20)) * 30
    data = Encoded(tuple((i,) for i in range(600)), classes, tuple(range(20)))
    assert beside.drawn("head", data, 30, 10_000, order) is data
    for name, most in (("gram", 256), ("fisher", 100), ("head", 200)):
        some = beside.drawn(name, data, 1, most, order)
        assert len(some) == most == len(set(some.tokens)) and some.labels == tuple(sorted(set(some.targets)))
        assert all(classes[i] == target for (i,), target in zip(some.tokens, some.targets, strict=True))
        assert some.tokens == beside.drawn(name, data, 1, most, order).tokens
    assert len(beside.drawn("gram", data, 5, 10_000, order)) == beside.EXAMPLES["gram"]
    rare = beside.drawn("head", data, 9, 160, order)
    assert 9 <= len(rare) < 160 and min(rare.targets.count(label) for label in rare.labels) >= 9
    assert len(beside.drawn("gram", data, 9, 160, order)) == 160
    with pytest.raises(RefusedError, match="expected at least 300 examples to measure on, got 256"):
        beside.drawn("fisher", data, 300, 10_000, order)
    text = Encoded(((1, 2), (3, 4)), ((1, 2), (3, 4)))
    assert beside.drawn("gram", text, 1, 1, order).labels == ()
