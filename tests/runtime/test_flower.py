"""The Flower transport and apps over a grid in this process."""

import importlib
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict

import fedpeft.runtime.flower
from fedpeft._proto import federation_pb2 as pb
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, RefusedError, RunError, StoppedError
from fedpeft.federation import Event, Journal, Parcel, Plan, messages
from fedpeft.flower import client_app, server_app
from fedpeft.runtime.flower.post import unwrap, wrap
from fedpeft.runtime.flower.ray import backend
from fedpeft.runtime.flower.settings import chosen
from fedpeft.runtime.flower.transport import FlowerTransport
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.simulation import simulate
from tests import tiny
from tests.federation import world
from tests.runtime.grid import FakeGrid, Node

RAISED = Error(2, "<class 'flwr.clientapp.client_app.ClientAppException'>:<'the patient is called Ann'>")


def echo(request: bytes) -> bytes:
    return b"re " + request


def silent(request: bytes) -> None:
    return None


def transport(nodes: dict[int, Node], least: int | None = None, **more: object) -> tuple[FlowerTransport, FakeGrid]:
    grid = FakeGrid(nodes)
    return FlowerTransport(grid, len(nodes) if least is None else least, **more), grid


def trio(handler: Callable[[bytes], bytes | Error | None] = echo) -> dict[int, Node]:
    return {30: Node("ann", handler), 20: Node("bob", handler), 10: Node("cat", handler)}


def swap(flower: FlowerTransport, requests: dict[str, bytes], deadline_s: float = 5.0) -> dict[str, bytes]:
    parcels = {node: Parcel.of(request) for node, request in requests.items()}
    return {arrival.node: bytes(arrival.data) for arrival in flower.exchange(parcels, deadline_s)}


def test_nodes_are_sites_by_name_and_answer() -> None:
    flower, grid = transport(trio())
    assert flower.nodes() == ["ann", "bob", "cat"]
    assert swap(flower, {"ann": b"1", "cat": b"3"}) == {"ann": b"re 1", "cat": b"re 3"}
    assert grid.nodes[20].asked == []
    assert max(grid.ttls[-2:]) <= 5.0


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 50_000])
def test_bytes_come_out_as_they_went_in(data: bytes) -> None:
    assert unwrap(wrap(data)) == data


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedpeft": ArrayRecord({"payload": Array("uint8", (2,), "numpy.ndarray", b"ab")})}),
        RecordDict({"fedpeft": ArrayRecord({"payload": Array("uint8", (3,), "fedpeft.v1", b"ab")})}),
        RecordDict({"fedpeft": ArrayRecord({"other": Array("uint8", (2,), "fedpeft.v1", b"ab")})}),
        RecordDict({**wrap(b"ab"), "more": ArrayRecord()}),
    ],
)
def test_other_content_is_refused(content: RecordDict) -> None:
    with pytest.raises(RefusedError, match=r"expected one array of type fedpeft\.v1"):
        unwrap(content)


def test_only_what_changed_is_sent_again() -> None:
    flower, grid = transport(trio(silent))
    flower.nodes()
    assert swap(flower, {"ann": b"1", "bob": b"1"}, 0.1) == {}
    for node in grid.nodes.values():
        node.handler = echo
    assert swap(flower, {"ann": b"1", "bob": b"2"}, 0.3) == {"bob": b"re 2"}
    assert grid.nodes[30].asked == [b"1"]
    assert grid.nodes[20].asked == [b"1", b"2"]


def test_what_was_at_work_when_the_deadline_passed_arrives_in_the_next_exchange() -> None:
    flower, grid = transport({1: Node("ann", silent)})
    flower.nodes()
    assert swap(flower, {"ann": b"1"}, 0.1) == {}
    asked = Message(wrap(b"re 1"), 1, "train")
    asked.metadata.__dict__["_reply_to_message_id"] = "letter-2"
    grid.replies["letter-2"] = asked
    assert swap(flower, {"ann": b"1"}) == {"ann": b"re 1"}
    assert len(grid.nodes[1].asked) == 1


def test_a_reply_to_an_older_request_is_dropped() -> None:
    flower, grid = transport({1: Node("ann", silent)})
    flower.nodes()
    assert swap(flower, {"ann": b"old"}, 0.1) == {}
    late = Message(wrap(b"re old"), 1, "train")
    late.metadata.__dict__["_reply_to_message_id"] = "letter-2"
    grid.replies["letter-2"] = late
    grid.nodes[1].handler = echo
    assert swap(flower, {"ann": b"new"}) == {"ann": b"re new"}


def test_who_stops_listening_loses_no_reply() -> None:
    flower, grid = transport(trio())
    flower.nodes()
    requests = dict.fromkeys(("ann", "bob", "cat"), b"1")
    first = next(iter(flower.exchange(dict.fromkeys(requests, Parcel.of(b"1")), 5)))
    del requests[first.node]
    assert swap(flower, requests).keys() == requests.keys()
    assert all(len(node.asked) == 1 for node in grid.nodes.values())


def test_a_reply_that_flower_gives_twice_counts_once() -> None:
    flower, grid = transport(trio())
    grid.twice = True
    flower.nodes()
    arrivals = list(flower.exchange(dict.fromkeys(("ann", "bob"), Parcel.of(b"1")), 5))
    assert sorted(arrival.node for arrival in arrivals) == ["ann", "bob"]


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_what_passes_is_sent_again_before_the_deadline(code: int) -> None:
    answers: list[bytes | Error] = [Error(code, "for now"), b"at last"]
    flower, grid = transport({1: Node("ann", lambda request: answers.pop(0))})
    flower.nodes()
    assert swap(flower, {"ann": b"1"}, 30) == {"ann": b"at last"}
    assert grid.nodes[1].asked == [b"1", b"1"]


def test_a_node_that_comes_back_as_another_is_the_same_site() -> None:
    def die(request: bytes) -> Error:
        grid.nodes = {2: Node("ann", echo)}
        return Error(5, "node unavailable")

    flower, grid = transport({1: Node("ann", die)})
    flower.nodes()
    assert swap(flower, {"ann": b"1"}, 30) == {"ann": b"re 1"}


def test_an_exception_is_a_failure_that_tells_its_class_alone() -> None:
    flower, _ = transport({1: Node("ann", lambda request: RAISED)})
    flower.nodes()
    request = pb.Task(run=b"r" * 16, round=3).SerializeToString()
    reply, payload = messages.split(swap(flower, {"ann": request})["ann"])
    assert (reply.run, reply.round, bytes(payload)) == (b"r" * 16, 3, b"")
    assert reply.failure.error == "ClientAppException, on its Flower node"


def test_a_reply_of_another_kind_is_a_failure() -> None:
    class Odd(Node):
        def take(self, message: Message) -> Message | None:
            if message.metadata.message_type == "query":
                return super().take(message)
            return Message(RecordDict(), reply_to=message)

    flower, _ = transport({1: Odd("ann", echo)})
    flower.nodes()
    reply, _ = messages.split(swap(flower, {"ann": pb.Task(round=1).SerializeToString()})["ann"])
    assert "expected one array" in reply.failure.error


def test_nodes_waits_for_as_many_as_a_round_needs() -> None:
    flower, grid = transport({1: Node("ann", echo)}, least=2)
    timer = threading.Timer(0.2, lambda: grid.nodes.update({2: Node("bob", echo)}))
    timer.start()
    assert flower.nodes() == ["ann", "bob"]
    timer.join()


def test_nodes_waits_for_the_name_of_a_node_that_is_there() -> None:
    flower, grid = transport({1: Node("ann", echo), 2: Node(None, echo)}, least=1)

    def come_back() -> None:
        del grid.nodes[2]
        grid.nodes[3] = Node("bob", echo)

    timer = threading.Timer(0.2, come_back)
    timer.start()
    assert flower.nodes() == ["ann", "bob"]
    timer.join()


def test_a_stopped_transport_waits_for_nobody() -> None:
    flower, _ = transport({1: Node("ann", silent)}, least=2)
    threading.Timer(0.1, flower.stop).start()
    with pytest.raises(StoppedError):
        flower.nodes()
    with pytest.raises(StoppedError):
        swap(flower, {"ann": b"1"})


def test_two_nodes_of_one_name_are_refused() -> None:
    told: list[Event] = []
    nodes = {1: Node("ann", echo), 2: Node("bob", echo), 3: Node("ann", echo)}
    flower, _ = transport(nodes, least=1, doubt_s=0.2, watch=told.append)
    with pytest.raises(RunError, match="nodes 1 and 3 both call themselves 'ann'"):
        flower.nodes()
    assert [event.node for event in told if event.kind == "connected"] == ["bob"]


def test_a_clash_that_ends_in_time_is_none() -> None:
    flower, grid = transport({1: Node("ann", echo), 2: Node("ann", echo)}, least=1, doubt_s=30)
    threading.Timer(0.2, lambda: grid.nodes.pop(1)).start()
    assert flower.nodes() == ["ann"]


def test_a_registered_name_is_stronger_than_what_a_node_says() -> None:
    nodes = {1: Node("ann", lambda request: b"not me"), 2: Node("eve", echo, registered="ann")}
    told: list[Event] = []
    flower, _ = transport(nodes, least=1, watch=told.append)
    assert flower.nodes() == ["ann"]
    assert swap(flower, {"ann": b"1"}) == {"ann": b"re 1"}
    assert flower.nodes() == ["ann"]
    assert [event.facts["why"] for event in told if event.kind == "rejected"] == [
        "nodes 2 and 1 both call themselves 'ann'; give each site its own name"
    ]


@pytest.mark.parametrize("claims", ["", "../etc", "a b", "x" * 64, RAISED])
def test_a_node_without_a_usable_name_takes_no_part(claims: str | Error) -> None:
    flower, _ = transport({1: Node("ann", echo), 2: Node(claims, echo)}, least=1)
    assert flower.nodes() == ["ann"]
    flower, _ = transport({1: Node("ann", echo), 2: Node(claims, echo)}, doubt_s=0.2)
    with pytest.raises(RunError, match="1 sites are there, 2 needed: node 2"):
        flower.nodes()


def over_flower(clients: dict[str, Callable[[bytes], bytes]]) -> FlowerTransport:
    return transport({9 - i: Node(name, client) for i, (name, client) in enumerate(clients.items())})[0]


def final(folder: Path, plan: Plan, make: Callable[[dict[str, Callable[[bytes], bytes]]], object]) -> torch.Tensor:
    with Journal(folder) as journal:
        server = world.server(plan, make(world.clients(None)), journal)
        assert len(list(server.run())) == plan.rounds
        return server.state.vector


def test_a_run_over_flower_is_the_run_in_memory(tmp_path: Path) -> None:
    plan = Plan(rounds=4, seed=5)
    assert torch.equal(final(tmp_path / "a", plan, over_flower), final(tmp_path / "b", plan, MemoryTransport))


def test_a_buffered_run_comes_to_its_end(tmp_path: Path) -> None:
    assert final(tmp_path / "a", Plan(rounds=4, seed=5, buffer=2), over_flower).isfinite().all()


class Apps:
    """A node that runs a ClientApp, as Flower's simulation does."""

    def __init__(self, config: object, index: int, sites: int, settings: dict[str, object]) -> None:
        self._app = client_app(config)
        self._context = Context(1, index, {"partition-id": index, "num-partitions": sites}, RecordDict(), settings)

    def take(self, message: Message) -> Message:
        return self._app(message, self._context)


def run_apps(config: object, folder: Path, mischief: Callable[[FakeGrid], None] = lambda grid: None) -> None:
    settings = {"folder": str(folder), "rounds": 3}
    grid = FakeGrid({100 + i: Apps(config, i, 3, settings) for i in range(3)})
    mischief(grid)
    server_app(config)(grid, Context(1, 0, {}, RecordDict(), settings))


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_of_the_apps_that_breaks_off_is_taken_up_in_its_folder(tmp_path: Path) -> None:
    raw = tiny.experiment(tmp_path, rounds=1)
    simulate(raw | {"rounds": 3}, tmp_path / "memory")

    def break_off(grid: FakeGrid) -> None:
        pushed, push = iter(range(3 + 3 + 2)), grid.push_messages

        def until_round_2(letters: list[Message]) -> list[str]:
            if next(pushed, None) is None:
                raise ConnectionError("the link is gone")
            return push(letters)

        grid.push_messages = until_round_2

    with pytest.raises(RunError, match="SuperLink fails: ConnectionError: the link is gone; the run can be taken up"):
        run_apps(raw, tmp_path / "flower", break_off)
    assert (tmp_path / "flower" / "metrics.jsonl").read_text().count("\n") == 1
    run_apps(raw, tmp_path / "flower")
    assert adapter(tmp_path / "flower") == adapter(tmp_path / "memory")
    assert {path.name for path in (tmp_path / "flower" / "sites").glob("*.state")} == {
        "site-1.state",
        "site-2.state",
        "site-3.state",
    }


def test_a_site_that_cannot_be_built_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tiny.experiment(tmp_path)
    settings = {"folder": str(tmp_path / "run"), "model.name": str(tmp_path / "nowhere")}
    node = Apps(raw, 0, 3, settings)
    task = Message(wrap(pb.Task(round=1).SerializeToString()), 1, "train")
    reply, _ = messages.split(unwrap(node.take(task).content))
    assert "nowhere' cannot be loaded" in reply.failure.error
    assert "Traceback" in reply.failure.trace


def test_a_node_says_which_site_it_is(tmp_path: Path) -> None:
    query = Message(wrap(b"name"), 1, "query")

    def name(**node_config: object) -> str:
        context = Context(1, 1, node_config, RecordDict(), {"sites": 12})
        return unwrap(client_app(None)(query, context).content).decode()

    assert name(**{"partition-id": 0}) == "site-01"
    assert name(site="north", socket="/nowhere") == "north"
    with pytest.raises(ConfigError, match="which site is this node"):
        name()
    with pytest.raises(ConfigError, match="has 12 sites, this node has partition-id 12; start 12 nodes"):
        name(**{"partition-id": 12})


def test_the_run_config_sets_keys_of_the_experiment(tmp_path: Path) -> None:
    def of(**settings: object) -> object:
        return chosen({"name": "x", "rounds": 2}, None, Context(7, 0, {}, RecordDict(), settings))

    experiment, folder = of(**{"training.local_steps": 3, "folder": ""})
    assert (experiment.rounds, experiment.training.local_steps) == (2, 3)
    assert folder == Path("runs/x-7").absolute()
    assert of(folder=str(tmp_path))[1] == tmp_path
    with pytest.raises(ConfigError, match="there is no such key; did you mean 'rounds'"):
        of(round=3)


def test_flower_that_is_missing_or_another_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"Flower is not installed: pip install 'fedpeft\[flower\]'"):
        importlib.reload(fedpeft.runtime.flower)
    monkeypatch.setattr(metadata, "version", lambda name: "1.42.0")
    with pytest.raises(ConfigError, match=r"expected Flower 1\.41\.0, found 1\.42\.0"):
        importlib.reload(fedpeft.runtime.flower)


@pytest.mark.parametrize(
    ("device", "gpus", "at_once", "sites_at_once", "share"),
    [("cpu", 0, 2, 2, 0), ("cpu", 0, 9, 3, 0), ("cuda", 2, None, 2, 1), ("cuda", 2, 3, 3, 0.5), ("cuda", 1, 2, 2, 0.5)],
)
def test_ray_is_told_how_many_sites_work_at_once(
    device: str, gpus: int, at_once: int | None, sites_at_once: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    experiment = Experiment.model_validate({"sites": 3, "model": {"device": device}})
    told = backend(experiment, at_once)
    assert (told["init_args"]["num_cpus"], told["init_args"]["num_gpus"]) == (sites_at_once, gpus)
    assert told["client_resources"] == {"num_cpus": 1, "num_gpus": share}


@pytest.mark.parametrize(
    ("device", "address", "message"),
    [
        ("cuda:1", None, "Ray gives each site its device; expected 'cuda', got 'cuda:1'"),
        ("cuda", None, "there is no GPU here"),
        ("cpu", "127.0.0.1:6379", "the Ray cluster at RAY_ADDRESS decides"),
    ],
)
def test_what_ray_cannot_do_is_said(
    device: str, address: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=message):
        backend(Experiment.model_validate({"model": {"device": device}}), 2)
