"""What a member does in an epoch of scalars: slopes along the directions that are its own."""

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.peers.scalar import ScalarLedger
from fedpeft.random import Purpose, Stream
from fedpeft.training import Encoded, Job, Settings
from fedpeft.training.zeroth_order import Walker


class ScalarWork:
    """Walks from the current adapter along a segment's directions, and publishes the steps.

    It keeps nothing: asked again for a segment, from the same state, it takes the same steps but for what the model's
    arithmetic varies in.

    Args:
        ledger: of the run.
        walker: holds the resident model.
        data: the member's examples.
        settings: how to train.
        rounding: to the "nearest" level, or at "random" so that the mean of a step is the one that was wanted.
    """

    live = True

    def __init__(
        self,
        ledger: ScalarLedger,
        walker: Walker,
        data: Encoded,
        settings: Settings,
        rounding: Literal["nearest", "random"] = "nearest",
    ) -> None:
        if rounding not in ("nearest", "random"):
            raise ValueError(f"rounding must be nearest or random, got {rounding!r}")
        self._ledger, self._walker, self._data = ledger, walker, data
        self._settings, self._rounding = settings, rounding

    def segment(self, state: bytes, epoch: int, peer: int, number: int) -> bytes:
        """The body of a segment: a scalar for each of its directions.

        Args:
            state: to walk from.
            epoch: that it is for.
            peer: the member.
            number: of the segment, from 1.

        Raises:
            RunError: training diverged.
        """
        ledger, body = self._ledger, bytearray()
        order, dropout, rounding = (
            Stream(ledger.subspace.seed, purpose, epoch, peer, number)
            for purpose in (Purpose.DATA, Purpose.DROPOUT, Purpose.CODEC_PRIVATE)
        )

        def publish(steps: NDArray[np.float64]) -> NDArray[np.float64]:
            words = rounding.words(steps.size, len(body)) if self._rounding == "random" else None
            scalars = ledger.encode(steps, words)
            body.extend(scalars)
            return ledger.decode(scalars)

        job = Job(ledger.adapter(state), self._data, self._settings, order, dropout)
        self._walker.walk(job, ledger.directions(epoch, peer, number), publish)
        return bytes(body)

    def adapter(self, state: bytes) -> Float[Tensor, " d"]:
        """The adapter of a state."""
        return self._ledger.adapter(state)
