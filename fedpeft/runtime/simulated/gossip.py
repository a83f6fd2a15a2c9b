"""Peers that gossip, in one process; bytes still go through the wire, so sizes are real."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from fedpeft.peers.gossip import Circle, Manner, Step, distance, metropolis, pairs


@dataclass
class Gossip:
    """All peers of a topology, and what they say to each other.

    With `in_pairs` each talks to one random neighbour a round, and a public copy is shared with one neighbour alone.

    Args:
        manner: of the run.
        near: the neighbours of each, by number from 1.
        start: the adapter that all begin with.
        in_pairs: talk to one neighbour a round, not to all.
    """

    manner: Manner
    near: Mapping[int, Sequence[int]]
    start: Float[Tensor, " d"]
    in_pairs: bool = False
    sent: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.adapters = {peer: self.start.clone() for peer in self.near}
        self.round = 0
        self._circles: dict[tuple[int, int], Circle] = {}
        for peer, weights in metropolis(self.near).items():
            if not self.in_pairs:
                self._circles[peer, 0] = Circle(self.manner, peer, weights, self.start)
                continue
            for other in self.near[peer]:
                self._circles[peer, other] = Circle(self.manner, peer, {peer: 0.5, other: 0.5}, self.start)

    def step(self, train: Step | None = None) -> None:
        """One round: everybody trains, talks, and goes towards the others.

        Args:
            train: local steps: an adapter, the peer and the round, and the adapter after them; None: nobody trains.
        """
        self.round += 1
        if train is not None:
            for peer, adapter in self.adapters.items():
                self.adapters[peer] = train(adapter, peer, self.round)
        talking = self._talking()
        said = {(p, channel): self._circles[p, channel].say(self.adapters[p], self.round) for p, channel, _ in talking}
        for peer, channel, others in talking:
            payload = said[peer, channel]
            for other in others:
                self._circles[other, peer if channel else 0].hear(peer, self.round, payload)
                self.sent[peer] += len(payload)
                self.received[other] += len(payload)
        for peer, channel, _ in talking:
            self.adapters[peer] = self.adapters[peer] + self._circles[peer, channel].pull(self.round)

    def distance(self) -> float:
        """How far the adapters are from their mean."""
        return distance(list(self.adapters.values()))

    def mean(self) -> Float[Tensor, " d"]:
        """The mean of all adapters, which nobody holds."""
        total = sum((adapter.double() for adapter in self.adapters.values()), self.start.double() * 0)
        return (total / len(self.adapters)).float()

    def _talking(self) -> list[tuple[int, int, Sequence[int]]]:
        """Who talks in this round: peer, its circle, and who hears it."""
        if not self.in_pairs:
            return [(peer, 0, others) for peer, others in self.near.items()]
        met = pairs(self.near, self.manner.seed, self.round)
        return [(a, b, [b]) for pair in met for a, b in (pair, pair[::-1])]
