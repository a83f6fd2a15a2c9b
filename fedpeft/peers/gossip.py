"""Adapters that are averaged with the neighbours' alone: no log, no epochs, and no two that are ever quite the same."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedpeft.codecs import Codec, Context
from fedpeft.errors import Defect, PayloadError
from fedpeft.federation import broadcast
from fedpeft.peers.delta import SHORTER, length
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space
from fedpeft.strategies import Context as Merging
from fedpeft.strategies import Mean, Strategy, Update

Step: TypeAlias = Callable[[Float[Tensor, " d"], int, int], Float[Tensor, " d"]]  # adapter, peer, round: after training


@dataclass(frozen=True)
class Manner:
    """How peers gossip, the same for all of a run.

    Args:
        space: of the adapter.
        codec: of what is said; without error feedback, since what was not said is said later anyway.
        strategy: merges what is heard.
        gamma: share of the merged difference that a peer goes, in (0, 1]; small where the codec loses much.
        seed: of all randomness.
        run: 16 bytes that name the run.
        largest_norm: L2 norm of what may be said at once.
    """

    space: Space
    codec: Codec
    strategy: Strategy = field(default_factory=Mean)
    gamma: float = 1.0
    seed: int = 0
    run: bytes = bytes(16)
    largest_norm: float = 1e4

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        if self.codec.reads or self.strategy.needs or self.strategy.offline:
            raise ValueError(f"{self.codec} with {self.strategy}: one of them takes more than neighbours' differences")


class Circle:
    """A peer and neighbours who hear the same of it: CHOCO-SGD (Koloskova, Stich and Jaggi, 2019, arXiv 1902.00340).

    All of a circle hold the same public copy of each other. In a round every peer says the encoded difference of its
    adapter and its public copy (Algorithm 2, line 4), all copies move by what was said (line 7), and the adapter goes
    towards its neighbours' copies (line 8): x += gamma * merge({x^_j - x^_i}). With `Mean` and symmetric weights that
    is the paper's, which keeps the mean of all adapters and brings them together geometrically; the peer itself is
    among those who are merged. The paper takes one step of SGD a round; with many local steps it is DiLoCo without a
    server (Douillard et al., 2023, arXiv 2311.08105).

    What a neighbour says must reach the peer, in order: a copy that misses a step stays wrong.

    Args:
        manner: of the run.
        number: of the peer.
        weights: of the peer and each neighbour, by number.
        start: the adapter that all begin with.
    """

    def __init__(self, manner: Manner, number: int, weights: Mapping[int, float], start: Float[Tensor, " d"]) -> None:
        self.manner, self.number = manner, number
        self._weights = dict(sorted(weights.items()))
        self.copies = {peer: start.clone() for peer in self._weights}
        self.heard = dict.fromkeys(self._weights, 0)

    def say(self, adapter: Float[Tensor, " d"], number: int) -> bytes:
        """What the neighbours are told in a round, by rising numbers; it moves the own public copy."""
        payload = self.encoded(adapter, number)
        self.hear(self.number, number, payload)
        return payload

    def encoded(self, adapter: Float[Tensor, " d"], number: int) -> bytes:
        """What is to be said in a round, which moves nothing yet: of a long way, as much as may be said at once.

        Raises:
            ValueError: the way is not finite, or more than the codec can say.
        """
        manner, ctx = self.manner, self._context(self.number, number)
        difference = adapter - self.copies[self.number]
        far = length(difference)
        if not math.isfinite(far):
            raise ValueError("the adapter is no finite way from its public copy; lower the learning rate")
        if far > manner.largest_norm:
            difference = manner.largest_norm / far * difference
        parts = manner.codec.encode(difference, manner.space, ctx)
        norm = length(manner.codec.decode(parts, manner.space, ctx))
        if norm > manner.largest_norm:
            parts = manner.codec.encode(SHORTER * manner.largest_norm / norm * difference, manner.space, ctx)
        return broadcast.pack(parts, manner.codec, manner.space, manner.run, ctx)

    def hear(self, peer: int, number: int, payload: bytes) -> None:
        """Move the public copy of a peer by what it said in a round; what was heard already moves nothing.

        Raises:
            PayloadError: it is not what a peer of this run says then; nothing changes.
        """
        if number <= self.heard[peer]:
            return
        manner = self.manner
        said = broadcast.unpack(payload, manner.codec, manner.space, manner.run, self._context(peer, number))
        norm = length(said)
        if not norm <= manner.largest_norm:
            raise PayloadError(Defect.NORM, f"expected an L2 norm of at most {manner.largest_norm:g}, got {norm:g}")
        self.copies[peer] = self.copies[peer] + said
        self.heard[peer] = number

    def pull(self, number: int, without: Collection[int] = ()) -> Float[Tensor, " d"]:
        """How far the peer goes in a round, once it has heard its neighbours.

        Args:
            number: of the round.
            without: neighbours that are left out; their weights are the peer's own.
        """
        manner, own, weights = self.manner, self.copies[self.number], dict(self._weights)
        weights[self.number] += sum(weights.pop(peer) for peer in sorted(without))
        if without and len(weights) < manner.strategy.least:
            return own * 0
        updates = [Update(self.copies[peer] - own, weight) for peer, weight in weights.items()]
        merged = manner.strategy.merge(updates, Merging(manner.space, own, manner.seed, number))
        return manner.gamma * merged

    def _context(self, peer: int, number: int) -> Context:
        return Context(self.manner.seed, number, peer)


def metropolis(near: Mapping[int, Sequence[int]]) -> dict[int, dict[int, float]]:
    """Weights of each peer and its neighbours that are symmetric and add up to 1 (Metropolis and Hastings).

    >>> metropolis({1: [2], 2: [1, 3], 3: [2]})[1]
    {1: 0.6666666666666667, 2: 0.3333333333333333}

    Args:
        near: the neighbours of each; each is its neighbours' neighbour.
    """
    weights = {}
    for peer, others in near.items():
        shares = {other: 1 / (1 + max(len(others), len(near[other]))) for other in others}
        weights[peer] = {peer: 1.0 - sum(shares.values())} | shares
    return weights


def pairs(near: Mapping[int, Sequence[int]], seed: int, number: int) -> list[tuple[int, int]]:
    """Who talks to whom in a round of random pairs: each to at most one of its neighbours.

    Args:
        near: the neighbours of each.
        seed: of the run.
        number: of the round.
    """
    edges = [(peer, other) for peer, others in sorted(near.items()) for other in others if peer < other]
    free, found = set(near), []
    for index in Stream(seed, Purpose.TOPOLOGY, number, part=1).permutation(len(edges)).tolist():
        peer, other = edges[index]
        if peer in free and other in free:
            free -= {peer, other}
            found.append((peer, other))
    return sorted(found)


def distance(adapters: Sequence[Float[Tensor, " d"]]) -> float:
    """How far adapters are from their mean: the root of the mean squared L2 distance."""
    stacked = np.stack([adapter.numpy() for adapter in adapters]).astype(np.float64)
    return float(np.sqrt(((stacked - stacked.mean(axis=0)) ** 2).sum(axis=1).mean()))
