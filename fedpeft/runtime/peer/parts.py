"""What the mode of a run decides of a peer: what bodies mean, whom it hears, and what it does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from fedpeft.config.peer import PeerRun
from fedpeft.errors import IdentityError
from fedpeft.peers.gossip import Circle, metropolis
from fedpeft.peers.gossip_work import GossipWork, steps
from fedpeft.peers.hearing import EVERYBODY, Hearing
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Roster
from fedpeft.peers.work import Work
from fedpeft.runtime.peer.course import Course
from fedpeft.runtime.peer.gossip_course import GossipCourse
from fedpeft.runtime.peer.ledgers import deltas, gossips, scalars
from fedpeft.runtime.peer.log_course import LogCourse
from fedpeft.runtime.peer.topology import among
from fedpeft.training import Encoded
from fedpeft.training.first_order import FirstOrderTrainer

Done: TypeAlias = Callable[[int, Float[Tensor, " d"], float | None], None]
Begin: TypeAlias = Callable[[Peer, int, Done, Callable[[str], None]], Course]


@dataclass(frozen=True)
class Parts:
    """What the mode of a run decides of a peer.

    Args:
        ledger: what bodies mean.
        hearing: who hears whom.
        course: what a peer does for so many epochs; it tells of each that is done, with the adapter and, where
            everybody has its own, how far that is from the mean of its circle, and of what people should see to.
    """

    ledger: Ledger
    hearing: Hearing
    course: Begin


def parts(run: PeerRun, trainer: FirstOrderTrainer, examples: Encoded, folder: Path, first: Roster) -> Parts:
    """The parts of one peer.

    Args:
        run: what all have agreed on.
        trainer: the resident model.
        examples: the peer's own.
        folder: what the peer must not lose.
        first: the roster that the run began with.

    Raises:
        ValueError: the run does not fit the adapter or the roster.
    """
    if run.mode == "gossip":
        return _gossip(run, trainer, examples, folder, first)
    if run.mode == "delta":
        ledger, working = deltas(trainer, run.plan(), run.id)
        return _log(ledger, working(examples, path=folder / "residual"))
    ledger, walking = scalars(trainer, run.scalar, run.seed, run.id)
    return _log(ledger, walking(examples))


def _log(ledger: Ledger, work: Work) -> Parts:
    def course(peer: Peer, epochs: int, done: Done, alarm: Callable[[str], None]) -> Course:
        return LogCourse(peer, work, epochs, lambda epoch, state: done(epoch, work.adapter(state), None), alarm)

    return Parts(ledger, EVERYBODY, course)


def _gossip(run: PeerRun, trainer: FirstOrderTrainer, examples: Encoded, folder: Path, first: Roster) -> Parts:
    plan, start = run.plan(), trainer.adapted.read()
    ledger, manner = gossips(trainer, plan, run.gossip.gamma, run.id)
    near = among(run.gossip.topology, first.by_number, run.seed)
    if (fewest := 1 + min(map(len, near.values()))) < plan.strategy.least:
        raise ValueError(
            f"{plan.strategy} merges at least {plan.strategy.least}, and a member and its neighbours are {fewest}; "
            "take another topology, more members or another strategy"
        )

    def course(peer: Peer, epochs: int, done: Done, alarm: Callable[[str], None]) -> Course:
        if not peer.number:
            raise IdentityError(
                "this peer is not on the roster that the run began with, and whoever gossips keeps the neighbours that "
                "it began with; it can take part in another run"
            )
        circle = Circle(manner, peer.number, metropolis(near)[peer.number], start)
        work = GossipWork(peer, circle, steps(plan, trainer, examples), folder / "own", alarm)
        return GossipCourse(peer, work, epochs, lambda number, own: done(number, own, work.distance()))

    return Parts(ledger, Hearing(near), course)
