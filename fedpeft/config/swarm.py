"""How the sites of an experiment are simulated as peers, without a server."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from fedpeft.config.peer import ScalarSection
from fedpeft.config.reading import read
from fedpeft.config.section import Section


class SwarmSection(Section):
    """Peers in one process; what they train on, and how, is the experiment's.

    Args:
        topology: who may talk to whom.
        mode: "scalar": one byte a step; "delta": an epoch is a round, merged by all; "gossip": neighbours' adapters are
            averaged, without a log and without ever being quite the same.
        segments: of a member in an epoch; 0: 4 of scalars, 1 of deltas.
        loss: probability that a request or an answer never comes.
        repeat: that it comes again later, after others.
        damage: that one bit of it is turned.
        delay: that it comes after others, when nobody waits for it any more.
        split: for so many rounds of exchange, from the first, two halves cannot reach each other.
        gamma: share of the difference from its neighbours that a gossiping peer goes in a round.
        pairs: gossip with one random neighbour a round, not with all.
        scalar: for mode "scalar".
    """

    topology: Literal["complete", "ring", "random"] = "complete"
    mode: Literal["scalar", "delta", "gossip"] = "delta"
    segments: int = Field(0, ge=0, le=4096)
    loss: float = Field(0.0, ge=0, lt=1)
    repeat: float = Field(0.0, ge=0, lt=1)
    damage: float = Field(0.0, ge=0, lt=1)
    delay: float = Field(0.0, ge=0, lt=1)
    split: int = Field(0, ge=0)
    gamma: float = Field(0.5, gt=0, le=1)
    pairs: bool = False
    scalar: ScalarSection = ScalarSection()


def load_swarm(overrides: Sequence[str]) -> SwarmSection:
    """The section that `key=value` pairs describe.

    Raises:
        ConfigError: names each wrong key, what was expected, and the nearest valid spelling.
    """
    return read(SwarmSection, None, overrides)
