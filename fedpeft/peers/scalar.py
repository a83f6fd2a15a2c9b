"""Epochs of scalars: each is a step along a direction that nobody chose, and the state is a sum for each direction."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.errors import Defect, PayloadError
from fedpeft.keys.signing import digest
from fedpeft.peers import ladder
from fedpeft.peers.ledger import Ledger
from fedpeft.random import Purpose, Stream
from fedpeft.training.subspace import Subspace


def directions_seed(run: bytes, seed: int) -> int:
    """What a run draws its directions from: a scalar of one run stands for nothing in another, whatever their seeds.

    Args:
        run: 32 bytes.
        seed: of the run.
    """
    return int.from_bytes(digest("directions", run, str(seed).encode()), "little")


class ScalarLedger(Ledger):
    """A ledger whose bodies are scalars of a byte each, and whose state is int64[K], little-endian.

    "Just One Byte (per gradient)" (Zelikman, Huang, Liang, Haber and Goodman, 2023, arXiv 2306.10015) shares a
    projected gradient and a seed; FedKSeed (Qin, Chen, Qian, Ding, Li and Deng, 2023, arXiv 2312.06353) keeps K seeds
    and a sum for each. Here the directions are orthonormal (`Subspace`), a scalar is a whole number of units, and
    which direction it belongs to follows from (run, epoch, member, place): a member can leave places out, and can not
    choose others. Sums of whole numbers have no order, so all peers come to the same bits; an adapter costs one
    transform whatever the length of the history.

    A member can move the adapter along one direction by no more than the largest level times the unit for each of the
    places it has there, which is its share of the epoch's.

    Args:
        base: the adapter before the first epoch, float32; on its device adapters are made.
        seed: of the run's directions, as `directions_seed` makes it.
        count: K, how many directions there are.
        unit: length of the shortest step.
        per_segment: scalars in a body, at most.
        largest: code of the longest step that is allowed, in [1, 127].

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        base: Float[Tensor, " d"],
        seed: int,
        count: int = 4096,
        unit: float = 2.0**-16,
        per_segment: int = 256,
        largest: int = ladder.LARGEST,
    ) -> None:
        if not 1 <= largest <= ladder.LARGEST:
            raise ValueError(f"largest must lie in [1, {ladder.LARGEST}], got {largest}")
        if not 1e-30 <= unit <= 1e6:
            raise ValueError(f"unit must lie in [1e-30, 1e6], got {unit}")
        if not 1 <= per_segment <= 1 << 16:
            raise ValueError(f"per_segment must lie in [1, {1 << 16}], got {per_segment}")
        self.subspace = Subspace(base.numel(), count, seed)
        self.base, self.unit, self.largest = base.detach().clone(), np.float32(unit), largest
        self.most_body, self.most_bytes = per_segment, 8 * count

    def beginning(self) -> bytes:
        """No step along any direction."""
        return bytes(self.most_bytes)

    def check(self, body: bytes) -> None:
        """See that a body holds scalars that are allowed.

        Raises:
            PayloadError: it is empty, too long, or holds a code that is none, or one of a step too long.
        """
        if not 1 <= len(body) <= self.most_body:
            defect = Defect.TOO_LARGE if body else Defect.EMPTY
            raise PayloadError(defect, f"expected 1 to {self.most_body} scalars, got {len(body)}")
        wrong = np.flatnonzero(ladder.refused(np.frombuffer(body, np.uint8), self.largest))
        if wrong.size:
            raise PayloadError(
                Defect.SYMBOL,
                f"scalar {wrong[0]}: expected a sign and up to {self.largest}, got code {body[wrong[0]]}",
            )

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        """The state after steps of an epoch; a short body leaves its last places out."""
        sums = self._sums(state)
        for peer, theirs in bodies.items():
            padded = b"".join(body.ljust(self.most_body, b"\0") for body in theirs)
            codes = np.frombuffer(padded, np.uint8)
            np.add.at(sums, self._drawn(epoch, peer, 0, codes.size), ladder.LEVELS[codes])
        return sums.astype("<i8").tobytes()

    def directions(self, epoch: int, peer: int, number: int) -> NDArray[np.int64]:
        """Which direction each place of a segment belongs to, int64[per_segment].

        Args:
            epoch: from 1.
            peer: the member.
            number: of the segment, from 1.
        """
        return self._drawn(epoch, peer, (number - 1) * self.most_body, self.most_body)

    def encode(self, steps: NDArray[np.float64], words: NDArray[np.uint32] | None = None) -> bytes:
        """Steps along directions as scalars.

        Args:
            steps: lengths, finite.
            words: as `ladder.encode` takes them.
        """
        return ladder.encode(steps / np.float64(self.unit), self.largest, words).tobytes()

    def decode(self, body: bytes) -> NDArray[np.float64]:
        """The lengths of the steps that scalars stand for."""
        lengths: NDArray[np.float64] = ladder.LEVELS[np.frombuffer(body, np.uint8)] * np.float64(self.unit)
        return lengths

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """The adapter of a state: the base, and all steps by one transform."""
        return self.base + self.subspace.along(self._sums(state).astype(np.float32) * self.unit, self.base)

    def direction(self, index: int) -> Float[Tensor, " d"]:
        """One direction, at the cost of its block."""
        return self.subspace.along(np.ones(1), self.base, np.array([index]))

    def _drawn(self, epoch: int, peer: int, start: int, n: int) -> NDArray[np.int64]:
        """K is a power of two, so a word's remainder is as random as the word."""
        words = Stream(self.subspace.seed, Purpose.DIRECTION, epoch, peer).words(n, start)
        return (words % np.uint32(self.subspace.count)).astype(np.int64)

    def _sums(self, state: bytes) -> NDArray[np.int64]:
        if len(state) != self.most_bytes:
            raise PayloadError(Defect.SIZE, f"expected a state of {self.most_bytes} bytes, got {len(state)}")
        return np.frombuffer(state, "<i8").astype(np.int64)
