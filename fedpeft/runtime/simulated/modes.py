"""The ways in which simulated peers fine-tune together: by a log that all agree on, or by gossip."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from fedpeft.config import Experiment
from fedpeft.config.swarm import SwarmSection
from fedpeft.keys.signing import digest
from fedpeft.peers.gossip import Manner
from fedpeft.peers.gossip_work import steps
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.work import Work
from fedpeft.runtime.peer.ledgers import deltas, scalars
from fedpeft.runtime.peer.topology import neighbours
from fedpeft.runtime.simulated.gossip import Gossip
from fedpeft.runtime.simulated.network import Weather
from fedpeft.runtime.simulated.swarm import Conditions, Swarm
from fedpeft.training import Encoded
from fedpeft.training.first_order import FirstOrderTrainer

_SEGMENTS = {"scalar": 4, "delta": 1}
_HELD = 4  # of many that gossip, since each has an adapter of its own


@dataclass(frozen=True, eq=False)
class Cast:
    """Who takes part.

    Args:
        experiment: what is trained, and how.
        swarm: how the peers talk.
        trainer: the resident model of all.
        data: of each peer.
        run: 32 bytes.
    """

    experiment: Experiment
    swarm: SwarmSection
    trainer: FirstOrderTrainer
    data: Sequence[Encoded]
    run: bytes

    @property
    def near(self) -> dict[int, list[int]]:
        """The neighbours of each peer, from 1."""
        found = neighbours(self.swarm.topology, len(self.data), self.experiment.seed)
        return {index + 1: [other + 1 for other in others] for index, others in enumerate(found)}


class Mode(Protocol):
    """A company of peers at work."""

    def epochs(self, count: int) -> Iterator[int]:
        """Work for so many epochs; yields the number of each when all have ended it."""
        ...

    def adapter(self) -> Float[Tensor, " d"]:
        """What came out, as one adapter."""
        ...

    def held(self) -> Sequence[Float[Tensor, " d"]]:
        """Adapters that peers hold: one where they agree, else some of them."""
        ...

    def stand(self) -> Mapping[str, Any]:
        """How far they agree."""
        ...

    def agree(self) -> bool:
        """Whether all hold what they should all hold."""
        ...

    def sent_bytes(self) -> int:
        """By all, requests and answers."""
        ...


class Log:
    """Peers with signed logs and epochs: all end with the same bits.

    Raises:
        ValueError: the experiment takes a server, or does not fit the adapter.
    """

    def __init__(self, cast: Cast) -> None:
        ledger, self._works = _parts(cast)
        self.swarm = Swarm(ledger, self._works, _conditions(cast), cast.run)

    def epochs(self, count: int) -> Iterator[int]:
        """Take part until so many epochs are closed by all."""
        return self.swarm.epochs(count)

    def adapter(self) -> Float[Tensor, " d"]:
        """The adapter of the state that most hold."""
        return self._works[0].adapter(self.swarm.states().most_common(1)[0][0])

    def held(self) -> Sequence[Float[Tensor, " d"]]:
        """That one."""
        return [self.adapter()]

    def stand(self) -> Mapping[str, Any]:
        """How many hold the commonest state, its hash, and rounds of exchange so far."""
        (state, agree), *_ = self.swarm.states().most_common(1)
        return {"exchanges": self.swarm.rounds, "agree": agree, "hash": digest("state", state).hex()[:16]}

    def agree(self) -> bool:
        """Whether all hold one state."""
        return len(self.swarm.states()) == 1

    def sent_bytes(self) -> int:
        """By all, requests and answers."""
        return self.swarm.network.sent.total()


class Neighbourly:
    """Peers that gossip: each has its own adapter, near the others'.

    Raises:
        ValueError: the codec or the strategy takes more than gossip has.
    """

    def __init__(self, cast: Cast) -> None:
        self._cast, self._plan = cast, cast.experiment.plan()
        plan, adapted = self._plan, cast.trainer.adapted
        manner = Manner(
            adapted.space,
            plan.update_codec,
            plan.strategy,
            cast.swarm.gamma,
            plan.seed,
            cast.run[:16],
            plan.largest_norm,
        )
        self._start = adapted.read()
        self.gossip = Gossip(manner, cast.near, self._start, cast.swarm.pairs)

    def epochs(self, count: int) -> Iterator[int]:
        """Train and talk so many times."""
        for number in range(1, count + 1):
            self.gossip.step(self._train)
            yield number

    def adapter(self) -> Float[Tensor, " d"]:
        """The mean of all, which nobody holds."""
        return self.gossip.mean()

    def held(self) -> Sequence[Float[Tensor, " d"]]:
        """Those of a few peers."""
        adapters = list(self.gossip.adapters.values())
        return adapters[:: -(-len(adapters) // _HELD)]

    def stand(self) -> Mapping[str, Any]:
        """How far they are from their mean, and the mean from where all began."""
        return {"distance": self.gossip.distance(), "moved": float((self.adapter() - self._start).norm())}

    def agree(self) -> bool:
        """Gossip promises no agreement, so none is missing."""
        return True

    def sent_bytes(self) -> int:
        """By all."""
        return self.gossip.sent.total()

    def _train(self, adapter: Float[Tensor, " d"], peer: int, number: int) -> Float[Tensor, " d"]:
        return steps(self._plan, self._cast.trainer, self._cast.data[peer - 1])(adapter, peer, number)


def _conditions(cast: Cast) -> Conditions:
    swarm, near = cast.swarm, cast.near
    hops = 2 + (len(near) / 2 if swarm.topology == "ring" else math.log2(len(near)))
    return Conditions(
        near,
        cast.experiment.seed,
        Weather(swarm.loss, swarm.repeat, swarm.damage, swarm.delay),
        swarm.split,
        swarm.segments or _SEGMENTS[swarm.mode],
        10 * hops / ((1 - swarm.loss) * (1 - swarm.delay)) ** 2,
    )


def _parts(cast: Cast) -> tuple[Ledger, Sequence[Work]]:
    trainer, experiment = cast.trainer, cast.experiment
    if cast.swarm.mode == "scalar":
        ledger, walking = scalars(trainer, cast.swarm.scalar, experiment.seed, cast.run)
        return ledger, [walking(data) for data in cast.data]
    ledger, working = deltas(trainer, experiment.plan(), cast.run)
    ranks = experiment.ranks or (0,) * len(cast.data)
    return ledger, [working(data, rank=rank) for data, rank in zip(cast.data, ranks, strict=True)]
