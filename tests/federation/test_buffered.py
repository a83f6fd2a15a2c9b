"""Rounds without a barrier: K updates close a round, stale ones count for less, none is counted twice or lost."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import Context, ErrorFeedback, Fragments, Identity, Ternary, Uniform
from fedpeft.errors import QuorumError, Reason
from fedpeft.federation import Arrival, Client, Handler, Journal, Parcel, Plan, Server, broadcast, messages
from fedpeft.strategies import Krum
from tests.federation import world
from tests.federation.world import SPACE, START

NAMES = ("ann", "bob", "cat")
LOSSLESS = Plan(rounds=6, buffer=2)
LOSSY = replace(LOSSLESS, codec=ErrorFeedback(Ternary(density=0.2)), broadcast=Uniform(bits=4))
NEVER = math.inf


@pytest.fixture(scope="module", autouse=True)
def _no_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


class Paced:
    """A transport in whose own time each node takes so long to answer."""

    def __init__(self, handlers: Mapping[str, Handler], pace: Mapping[str, float]) -> None:
        self.handlers, self.pace, self.now = dict(handlers), dict(pace), 0.0
        self.asked: list[tuple[str, pb.Task]] = []
        self.replies: dict[tuple[str, int], bytes] = {}
        self._due: dict[str, tuple[float, bytes]] = {}

    def nodes(self) -> list[str]:
        return sorted(self.handlers)

    def exchange(self, requests: Mapping[str, Parcel], deadline_s: float) -> Iterator[Arrival]:
        kept = {node: due for node, due in self._due.items() if requests.get(node) == due[1]}
        new = {node: data for node, data in sorted(requests.items()) if node not in kept}
        self.asked += [(node, pb.Task.FromString(bytes(data))) for node, data in new.items()]
        self._due = kept | {node: (self.now + self.pace[node], data) for node, data in new.items()}
        while self._due:
            node = min(self._due, key=lambda node: (self._due[node][0], node))
            due, data = self._due[node]
            if due == NEVER:
                return
            del self._due[node]
            self.now = due
            answer = self.handlers[node](bytes(data))
            self.replies[node, world.round_of(answer)] = answer
            yield Arrival(node, answer)

    def rounds_asked(self, node: str) -> list[int]:
        return [task.round for name, task in self.asked if name == node]


def run(plan: Plan, folder: Path, pace: Mapping[str, float]) -> tuple[Server, Paced, list[dict]]:
    transport = Paced(world.clients(folder / "sites", tuple(pace)), pace)
    with Journal(folder / "journal") as journal:
        server = world.server(plan, transport, journal)
        list(server.run())
        return server, transport, world.log(journal)


def accepted(records: list[dict]) -> list[tuple[int, str, int]]:
    return [(r["round"], r["node"], r["base"]) for r in records if r["kind"] == "ACCEPT"]


def sent(server: Server, plan: Plan, transport: Paced, node: str, base: int) -> torch.Tensor:
    """The delta in a node's update, as the server decodes it."""
    number = 1 + sorted(transport.handlers).index(node)
    _, payload = messages.split(transport.replies[node, base])
    return broadcast.unpack(payload, plan.update_codec, SPACE, server.state.run, Context(plan.seed, base, number))


def test_a_round_closes_with_its_kth_update_and_nobody_waits_for_the_slow(tmp_path: Path) -> None:
    _, transport, records = run(LOSSLESS, tmp_path, {"ann": 1, "bob": 2, "cat": 7})
    counts = Counter(number for number, _, _ in accepted(records))
    assert counts == dict.fromkeys(range(1, 7), 2)
    late = [(number, base) for number, node, base in accepted(records) if node == "cat"]
    assert late == [(4, 1)], "it is counted when it comes"
    assert transport.rounds_asked("cat") == [1, 5]
    assert transport.now < 2 * 7


def test_a_stale_update_counts_for_less_by_the_root_of_its_age(tmp_path: Path) -> None:
    plan = replace(LOSSLESS, rounds=8)
    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 2, "cat": 7})
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, transport, journal)
        states = [START, *(server.state.vector for _ in server.run())]
        counted = accepted(world.log(journal))
    ages = set()
    for number in range(1, 9):
        total, weights = torch.zeros(SPACE.numel, dtype=torch.float64), 0.0
        for node, base in [(node, base) for n, node, base in counted if n == number]:
            weight, age = 2 * NAMES.index(node) + 1, number - base
            ages.add(age)
            total += weight * sent(server, plan, transport, node, base).double() / math.sqrt(1 + age)
            weights += weight
        assert torch.allclose(states[number].double(), states[number - 1].double() + total / weights, atol=1e-6)
    assert {0, 1, 3} <= ages


def test_as_fast_as_each_other_a_full_buffer_is_a_synchronous_round(tmp_path: Path) -> None:
    pace = dict.fromkeys(NAMES, 1.0)
    buffered, _, _ = run(replace(LOSSY, buffer=3), tmp_path / "buffered", pace)
    synchronous, _, _ = run(replace(LOSSY, buffer=0), tmp_path / "synchronous", pace)
    assert torch.equal(buffered.state.vector, synchronous.state.vector)


def test_a_synchronous_run_asks_each_node_once_a_round(tmp_path: Path) -> None:
    _, transport, records = run(replace(LOSSY, buffer=0), tmp_path, {"ann": 1, "bob": 2, "cat": 7})
    assert [(task.round, node, task.counted, task.refused) for node, task in transport.asked] == [
        (number, node, number - 1, 0) for number in range(1, 7) for node in NAMES
    ]
    assert all(base == number for number, _, base in accepted(records))


PACES = st.fixed_dictionaries({name: st.floats(0.5, 9) for name in (*NAMES, "dan")})


@settings(deadline=None, max_examples=25)
@given(pace=PACES, buffer=st.integers(1, 4), cohort=st.sampled_from([0, 0, 4, 3]))
def test_each_node_counts_at_most_once_from_each_adapter_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, pace: dict[str, float], buffer: int, cohort: int
) -> None:
    """Error feedback: all that a node ever made is in what was counted, or in its residual, or on its way."""
    plan = replace(LOSSY, buffer=min(buffer, cohort or 4), cohort=cohort, rounds=5)
    server, transport, records = run(plan, tmp_path_factory.mktemp("paced"), pace)
    counted = accepted(records)
    assert len(counted) == len({(node, base) for _, node, base in counted})
    assert all(base <= number for number, _, base in counted)
    assert not [r for r in records if r["kind"] == "REFUSE"]
    for node in pace:
        assert_nothing_is_lost(server, plan, transport, node, [base for _, name, base in counted if name == node])


def assert_nothing_is_lost(server: Server, plan: Plan, transport: Paced, node: str, counted: list[int]) -> None:
    client = transport.handlers[node]
    assert isinstance(client, Client)
    made = torch.zeros(SPACE.numel)
    for job in list(client._trainer.jobs):
        made += next(client._trainer.train([job])).vector - job.start
    state = client._store.load()
    kept = state.residual + sum(sent(server, plan, transport, node, base) for base in counted)
    if state.replied > max(counted, default=0):
        kept = kept + sent(server, plan, transport, node, state.replied)
    assert torch.allclose(made, kept, atol=1e-4), (node, counted, state.replied)


@pytest.mark.parametrize("kill_at", range(1, 9))
@pytest.mark.parametrize("kind", ["ACCEPT", "ASK", "CLOSE", "COMMIT"])
def test_killed_at_any_step_of_a_buffer_it_goes_on(tmp_path: Path, kill_at: int, kind: str) -> None:
    plan, pace = replace(LOSSY, rounds=4), {"ann": 1.0, "bob": 2.0, "cat": 5.0}
    clients = world.clients(tmp_path / "sites")
    transport, before = Paced(clients, pace), list[tuple[int, str, int]]()
    with Journal(tmp_path / "journal") as journal:
        genuine, left = journal.append, [kill_at]

        def dying(name: str, /, **fields: object) -> None:
            left[0] -= name == kind
            if left[0] == 0:
                raise KeyboardInterrupt
            genuine(name, **fields)

        journal.append = dying  # type: ignore[method-assign]
        try:
            list(world.server(plan, transport, journal).run())
        except KeyboardInterrupt:
            before = accepted(world.log(journal))
    again = Paced(clients, pace)
    again.replies = transport.replies
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, again, journal)
        list(server.run())
        counted = accepted(world.log(journal))
    assert counted[: len(before)] == before, "what was accepted stays accepted"
    assert Counter(number for number, _, _ in counted) == dict.fromkeys(range(1, 5), 2)
    assert len(counted) == len({(node, base) for _, node, base in counted})
    for node in NAMES:
        assert_nothing_is_lost(server, plan, again, node, [base for _, name, base in counted if name == node])


def test_the_deadline_closes_a_buffer_that_has_a_quorum(tmp_path: Path) -> None:
    _, transport, records = run(
        replace(LOSSLESS, buffer=3, quorum=0.6, rounds=2), tmp_path, {"ann": 1, "bob": 2, "cat": NEVER}
    )
    assert accepted(records) == [(1, "ann", 1), (1, "bob", 1), (2, "ann", 2), (2, "bob", 2)]
    assert transport.rounds_asked("cat") == [1], "it is still at work on its first task"


def test_below_quorum_nothing_changes_and_the_buffer_is_kept(tmp_path: Path) -> None:
    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 2, "cat": NEVER})
    with Journal(tmp_path / "journal") as journal:
        server = world.server(replace(LOSSLESS, buffer=3, rounds=1), transport, journal)
        with pytest.raises(QuorumError, match="round 1: 2 of 3 clients were counted, 3 needed"):
            list(server.run())
        assert torch.equal(server.state.vector, START)
        transport.pace["cat"], transport._due["cat"] = 1, (transport.now, transport._due["cat"][1])
        (row,) = server.run()
        assert row["counted"] == 3
        assert accepted(world.log(journal)) == [(1, "ann", 1), (1, "bob", 1), (1, "cat", 1)]
    assert transport.rounds_asked("ann") == [1]


@pytest.mark.parametrize("reason", [Reason.STALE_ADAPTER, Reason.LATE, Reason.DUPLICATE, Reason.NOT_ASKED, "nonsense"])
def test_a_node_that_always_refuses_is_not_asked_for_ever(tmp_path: Path, reason: str) -> None:
    def refusing(request: bytes) -> bytes:
        task = pb.Task.FromString(request)
        return messages.join(pb.Reply(run=task.run, round=task.round, refusal=pb.Refusal(reason=reason)))

    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 0.01, "cat": 1})
    transport.handlers["bob"] = refusing
    with Journal(tmp_path / "journal") as journal:
        assert len(list(world.server(replace(LOSSLESS, rounds=3), transport, journal).run())) == 3
        refused = Counter(r["round"] for r in world.log(journal) if r["kind"] == "REFUSE")
    assert all(count <= 3 for count in refused.values())
    assert len(transport.rounds_asked("bob")) <= 7


def test_a_node_that_lost_its_disk_is_sent_the_whole(tmp_path: Path) -> None:
    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 1})
    transport.handlers.pop("cat")
    with Journal(tmp_path / "journal") as journal:
        rounds = world.server(replace(LOSSY, rounds=2), transport, journal).run()
        next(rounds)
        (tmp_path / "sites" / "bob").unlink()
        assert next(rounds)["counted"] == 2
    assert [bool(task.space) for node, task in transport.asked if node == "bob"] == [True, False, True]


def test_an_update_counted_in_this_round_is_not_made_up_for(tmp_path: Path) -> None:
    """Its next task, of the same round, says that it was counted: or the site would put it back into its residual."""
    plan = replace(LOSSY, rounds=3)
    _, transport, records = run(plan, tmp_path, {"ann": 1, "bob": 1, "cat": 1.5})
    assert (2, "cat", 1) in accepted(records)
    (task,) = [task for node, task in transport.asked if (node, task.round) == ("cat", 2)]
    assert task.counted == 1
    assert [step.from_round for step in task.broadcasts] == [1]


def test_an_update_refused_for_its_content_is_not_made_up_for(tmp_path: Path) -> None:
    class Once(world.Puller):
        def train(self, jobs):
            for trained in super().train(jobs):
                yield replace(trained, vector=trained.vector * 1e9) if len(self.jobs) == 1 else trained

    clients = world.clients(tmp_path / "sites")
    clients["cat"]._trainer = Once()
    transport = Paced(clients, {"ann": 1, "bob": 1, "cat": 1.5})
    with Journal(tmp_path / "journal") as journal:
        list(world.server(replace(LOSSY, rounds=4), transport, journal).run())
        refused = [(r["round"], r["node"], r["base"]) for r in world.log(journal) if r["kind"] == "REFUSE"]
        counted = accepted(world.log(journal))
    assert refused == [(2, "cat", 1)]
    assert ("cat", 2) in {(node, base) for _, node, base in counted}


def test_who_was_asked_in_an_earlier_round_counts_although_not_drawn_now(tmp_path: Path) -> None:
    names = tuple("abcdefgh")
    plan = replace(LOSSLESS, codec=Identity(), cohort=3, buffer=2, rounds=12)
    _, transport, records = run(plan, tmp_path, {name: 1 + 0.7 * i for i, name in enumerate(names)})
    cohorts = {r["round"]: r["cohort"] for r in records if r["kind"] == "OPEN"}
    from_outside = [(n, node, base) for n, node, base in accepted(records) if node not in cohorts[n]]
    assert from_outside
    assert all(node in cohorts[base] for _, node, base in from_outside)
    assert not [r for r in records if r["kind"] == "REFUSE"]
    assert all(task.round in cohorts and node in cohorts[task.round] for node, task in transport.asked)


def test_a_node_that_was_away_when_the_round_opened_counts_when_it_is_back(tmp_path: Path) -> None:
    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 1, "cat": 2.5})
    genuine = transport.nodes
    with Journal(tmp_path / "journal") as journal:
        rounds = world.server(LOSSLESS, transport, journal).run()
        next(rounds)
        transport.nodes = lambda: ["ann", "bob"]  # type: ignore[method-assign]
        next(rounds)
        next(rounds)
        transport.nodes = genuine  # type: ignore[method-assign]
        list(rounds)
        assert (3, "cat", 1) in accepted(world.log(journal))


def test_a_slot_is_merged_from_the_updates_that_carry_it(tmp_path: Path) -> None:
    plan = replace(LOSSLESS, rounds=8, codec=Fragments(Identity(), count=2))
    transport = Paced(world.clients(tmp_path / "sites"), {"ann": 1, "bob": 2, "cat": 7})
    with Journal(tmp_path / "journal") as journal:
        server = world.server(plan, transport, journal)
        states = [START, *(server.state.vector for _ in server.run())]
        counted = accepted(world.log(journal))
    alone = 0
    for number in range(1, 9):
        bases = {node: base for n, node, base in counted if n == number}
        step = states[number] - states[number - 1]
        for slot in SPACE.slots:
            carrying = {
                node: base
                for node, base in bases.items()
                if slot in plan.update_codec.carried(SPACE, Context(plan.seed, base)).slots
            }
            alone += 0 < len(carrying) < len(bases)
            wanted, total = torch.zeros(slot.shape), 0.0
            for node, base in carrying.items():
                weight = 2 * NAMES.index(node) + 1
                delta = SPACE.view(sent(server, plan, transport, node, base), slot.name)
                wanted += weight * delta / math.sqrt(1 + number - base)
                total += weight
            wanted /= total or 1.0
            assert torch.allclose(SPACE.view(step, slot.name), wanted, atol=1e-4), (number, slot.name, bases)
    assert alone > 3, "some slots came in a part of a round's updates"


def test_a_rule_that_needs_company_takes_no_slots_in_turn_without_a_barrier(tmp_path: Path) -> None:
    plan = replace(LOSSLESS, buffer=3, codec=Fragments(Identity(), count=2), strategy=Krum(0))
    with Journal(tmp_path / "journal") as journal, pytest.raises(ValueError, match="set buffer: 0, or take a codec"):
        world.server(plan, Paced(world.clients(tmp_path / "sites"), {}), journal)
