"""A federation without a model: clients whose "training" is arithmetic, so that rounds take microseconds."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fedpeft._proto import federation_pb2 as pb
from fedpeft.federation import Arrival, Client, ClientStore, Journal, Parcel, Plan, Server, messages
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.space import Slot, Space
from fedpeft.training import Encoded, Job, Trained

SPACE = Space(
    (Slot("a", (3, 5), "lora_A"), Slot("b", (5, 2), "lora_B"), Slot("head", (700,), "head")), '{"r":3}', "ab" * 32
)
START = torch.linspace(-1, 1, SPACE.numel)


class Puller:
    """Moves an adapter a third of the way to a goal that the site's data set, with noise from the job's stream."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        for job in jobs:
            self.jobs.append(job)
            goal = torch.full((SPACE.numel,), float(job.data.tokens[0][0]))
            noise = 0.1 * torch.from_numpy(job.order.normal(SPACE.numel)).float()
            yield Trained(job.start + (goal + noise - job.start) / 3, {"loss": float((job.start - goal).norm())})


def examples(goal: int, size: int) -> Encoded:
    return Encoded(((goal,),) * size, (0,) * size, (0,))


def clients(
    folder: Path | None, names: Sequence[str] = ("ann", "bob", "cat"), space: Space = SPACE
) -> dict[str, Client]:
    return {
        name: Client(
            Puller(), examples(goal, 2 * goal + 1), space, ClientStore(folder / name if folder else None, space)
        )
        for goal, name in enumerate(names)
    }


class Tampering(MemoryTransport):
    """A memory transport that lets a test change what goes up: bytes, a list of bytes, or nothing."""

    def __init__(self, handlers: Mapping[str, Callable[[bytes], bytes]]) -> None:
        super().__init__(handlers)
        self.tamper: Callable[[str, bytes], bytes | Sequence[bytes] | None] = lambda node, data: data
        self.asked: list[tuple[str, pb.Task]] = []

    def exchange(self, requests: Mapping[str, Parcel], deadline_s: float) -> Iterator[Arrival]:
        self.asked += [(node, pb.Task.FromString(bytes(request))) for node, request in sorted(requests.items())]
        for arrival in super().exchange(requests, deadline_s):
            changed = self.tamper(arrival.node, arrival.data)
            for data in [changed] if isinstance(changed, bytes) else changed or ():
                yield Arrival(arrival.node, data)


def server(plan: Plan, transport: MemoryTransport, journal: Journal) -> Server:
    return Server(plan, SPACE, START, transport, journal, evaluate=lambda v: {"loss": float(v.norm()), "accuracy": 0.5})


def reply(data: bytes, **changes: object) -> bytes:
    """The same reply with some fields of its update changed."""
    message, payload = messages.split(data)
    payload = changes.pop("payload", payload)
    for name, value in changes.items():
        setattr(message.update if hasattr(message.update, name) else message, name, value)
    return messages.join(message, payload)


def log(journal: Journal) -> list[dict]:
    """All records of a journal, from the disk: what a finished round alone needed has left the memory."""
    lines = (journal.folder / "log.jsonl").read_bytes().splitlines()
    return [json.loads(line.partition(b" ")[2]) for line in lines]


def round_of(data: bytes) -> int:
    return messages.split(data)[0].round
