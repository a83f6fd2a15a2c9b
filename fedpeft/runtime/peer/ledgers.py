"""What the bodies of a run mean, and what makes them, for peers on machines of their own and for simulated ones."""

from collections.abc import Callable
from functools import partial

from fedpeft.config.peer import ScalarSection
from fedpeft.federation import Plan
from fedpeft.peers.delta import DeltaLedger
from fedpeft.peers.delta_work import DeltaWork
from fedpeft.peers.gossip import Manner
from fedpeft.peers.gossip_ledger import GossipLedger
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.scalar import ScalarLedger, directions_seed
from fedpeft.peers.scalar_work import ScalarWork
from fedpeft.training import Encoded
from fedpeft.training.first_order import FirstOrderTrainer
from fedpeft.training.zeroth_order import Walker


def scalars(
    trainer: FirstOrderTrainer, section: ScalarSection, seed: int, run: bytes
) -> tuple[Ledger, Callable[[Encoded], ScalarWork]]:
    """The ledger of scalars from the trainer's adapter on, and what makes a member's work from its examples.

    Args:
        trainer: the resident model.
        section: what all have agreed on.
        seed: of the run.
        run: 32 bytes.

    Raises:
        ValueError: the directions do not fit the adapter.
    """
    s, start = section, trainer.adapted.read()
    ledger = ScalarLedger(start, directions_seed(run, seed), s.directions, s.unit, s.per_segment, s.largest)
    walker = Walker(trainer, ledger.subspace, s.estimator, s.epsilon, s.directions_per_step)
    return ledger, partial(_walking, ledger, walker, section)


def deltas(trainer: FirstOrderTrainer, plan: Plan, run: bytes) -> tuple[Ledger, Callable[..., DeltaWork]]:
    """The ledger of deltas from the trainer's adapter on, and what makes a member's work: it takes data, path and rank.

    Args:
        trainer: the resident model.
        plan: what all have agreed on.
        run: 32 bytes.

    Raises:
        ValueError: the plan does not fit the adapter, or takes a server.
    """
    ledger = DeltaLedger(plan, trainer.adapted.space, trainer.adapted.read(), run)
    return ledger, partial(DeltaWork, ledger, trainer)


def gossips(trainer: FirstOrderTrainer, plan: Plan, gamma: float, run: bytes) -> tuple[Ledger, Manner]:
    """The ledger of gossip from the trainer's adapter on, and how it is done.

    Error feedback around the codec is left off: what was not said is part of the next difference anyway.

    Args:
        trainer: the resident model.
        plan: what all have agreed on.
        gamma: share of the merged difference that a peer goes, in (0, 1].
        run: 32 bytes.

    Raises:
        ValueError: the codec or the strategy takes more than gossip has.
    """
    space = trainer.adapted.space
    plan.strategy.check_space(space)
    manner = Manner(space, plan.update_codec, plan.strategy, gamma, plan.seed, run[:16], plan.largest_norm)
    return GossipLedger(manner, trainer.adapted.read()), manner


def _walking(ledger: ScalarLedger, walker: Walker, section: ScalarSection, data: Encoded) -> ScalarWork:
    return ScalarWork(ledger, walker, data, section.settings())
