"""Dishonest sites in a simulation: only what a site trains is forged, so that it goes through the real codec and wire.

The dishonest sites are the last in node order. `MemoryTransport` asks in that order, so they answer when the honest
ones have, and may know what those trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.config import Experiment
from fedpeft.federation import Client, ClientStore
from fedpeft.federation.client_state import ClientState
from fedpeft.preparation import Prepared
from fedpeft.run import Connect
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.simulation import partition, site_name
from fedpeft.training import Job, Trained, Trainer
from simulations.attacks import Attack, Scene

_PART = 1 << 20


@dataclass(eq=False)
class Overheard:
    """The deltas that honest sites trained in the round that is going on."""

    round: int = 0
    deltas: list[Float[Tensor, " d"]] = field(default_factory=list)

    def add(self, round_number: int, delta: Float[Tensor, " d"]) -> None:
        """Those of another round are forgotten."""
        if round_number != self.round:
            self.round, self.deltas = round_number, []
        self.deltas.append(delta)


@dataclass(eq=False)
class Honest:
    """A site's trainer, on which others listen in."""

    trainer: Trainer
    overheard: Overheard

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Work on the jobs."""
        for job, trained in zip(jobs, self.trainer.train(jobs), strict=True):
            self.overheard.add(job.order.round, trained.vector - job.start)
            yield trained


@dataclass(eq=False)
class Dishonest:
    """A trainer that answers what an attack makes of what it trained.

    Args:
        trainer: of honest training.
        attack: what is made of it.
        overheard: what the honest sites trained.
        dishonest: how many sites are.
    """

    trainer: Trainer
    attack: Attack
    overheard: Overheard
    dishonest: int
    _last: Float[Tensor, " d"] | None = None

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Train honestly, then forge."""
        for job, trained in zip(jobs, self.trainer.train(jobs), strict=True):
            moved = torch.zeros_like(job.start) if self._last is None else job.start - self._last
            self._last = job.start.clone()
            stream = replace(job.order, part=_PART)
            scene = Scene(trained.vector - job.start, tuple(self.overheard.deltas), moved, self.dishonest, stream)
            yield replace(trained, vector=job.start + self.attack.delta(scene))


class Forgetful(ClientStore):
    """A store that gives no residual back: a forged delta is sent for what it is."""

    def load(self) -> ClientState:
        """The state as it was last saved, but for the residual."""
        state = super().load()
        return replace(state, residual=torch.zeros_like(state.residual))


def attacked(experiment: Experiment, attack: Attack, dishonest: int) -> Connect:
    """What reaches the simulated sites where the last so many of them are dishonest."""

    def connect(prepared: Prepared, folder: Path) -> MemoryTransport:
        split, overheard = partition(experiment, prepared), Overheard()
        honest = len(split) - dishonest
        listened = Honest(prepared.trainer, overheard)
        clients = {}
        for i, rows in enumerate(split):
            name = site_name(i, len(split))
            trainer = listened if i < honest else Dishonest(prepared.trainer, attack, overheard, dishonest)
            clients[name] = _client(experiment, prepared, rows, trainer, folder / "sites" / f"{name}.state")
        return MemoryTransport(clients)

    return connect


def _client(
    experiment: Experiment, prepared: Prepared, rows: Sequence[int], trainer: Honest | Dishonest, path: Path
) -> Client:
    data, plan = prepared.trainer.encode([prepared.train[i] for i in rows]), experiment.plan()
    store = ClientStore(path, prepared.space)
    if isinstance(trainer, Dishonest):
        data = trainer.attack.data(data, len(prepared.labels))
        if not trainer.attack.keeps:
            store = Forgetful(path, prepared.space)
    plugins = {repr(codec): codec for codec in (plan.codec, plan.broadcast)}
    return Client(trainer, data, prepared.space, store, plugins)
