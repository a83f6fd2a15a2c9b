"""Scalars of no model: what they cost does not depend on what they say."""

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.peers import ladder
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.scalar import ScalarLedger
from fedpeft.random import Purpose, Stream

RUN = bytes(range(32))
DIRECTIONS, PER_SEGMENT = 4096, 256


def ledger(numel: int) -> ScalarLedger:
    """Of an adapter of so many parameters."""
    return ScalarLedger(torch.zeros(numel), seed=0, count=DIRECTIONS, per_segment=PER_SEGMENT)


class Made:
    """A work that publishes random scalars."""

    live = True

    def __init__(self, ledger: Ledger) -> None:
        self._size = ledger.most_body

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        """Scalars of a place."""
        normal = Stream(0, Purpose.DATA, epoch, peer, number).normal(self._size)
        return ladder.encode(100 * normal).tobytes()

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """Nothing is trained."""
        return torch.zeros(0)


def replay_s(numel: int, scalars: int, by_one: int) -> dict[str, float]:
    """Seconds to come from a history of scalars to an adapter.

    Args:
        numel: parameters.
        scalars: of the history.
        by_one: how many are replayed one after another, each with a normal vector drawn from its seed; the others cost
            the same, and are not waited for.
    """
    one, made = ledger(numel), Made(ledger(numel))
    bodies = {1: [made.segment(b"", 1, 1, number) for number in range(1, -(-scalars // PER_SEGMENT) + 1)]}
    one.adapter(one.fold(one.beginning(), 1, bodies))
    seconds = min(_timed(lambda: one.adapter(one.fold(one.beginning(), 1, bodies))) for _ in range(3))
    steps = one.decode(bodies[1][0])[:by_one].tolist()
    return {"replay_s": seconds, "one_by_one_s": _timed(lambda: _by_one(numel, steps)) * scalars / len(steps)}


def _by_one(numel: int, steps: Sequence[float]) -> Tensor:
    adapter, drawn = torch.zeros(numel), torch.Generator()
    for seed, step in enumerate(steps):
        adapter.add_(torch.randn(numel, generator=drawn.manual_seed(seed)), alpha=step)
    return adapter


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
