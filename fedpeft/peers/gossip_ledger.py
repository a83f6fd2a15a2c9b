"""What bodies mean where peers gossip: each is for its neighbours, and there is no state of all."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from fedpeft.errors import Defect, PayloadError
from fedpeft.federation import broadcast
from fedpeft.peers.delta import little
from fedpeft.peers.gossip import Manner


class GossipLedger:
    """A ledger of what is said in each round; its state is the adapter that all begin with, and stays that.

    A body is a payload. Any that is not too large is held: what cannot be read in its place moves nothing, at anybody.

    Args:
        manner: of the run.
        start: the adapter that all begin with.
    """

    def __init__(self, manner: Manner, start: Float[Tensor, " d"]) -> None:
        self._start = start.detach().clone()
        self.most_body, self.most_bytes = broadcast.largest(manner.codec, manner.space), 4 * manner.space.numel

    def beginning(self) -> bytes:
        """The adapter that all begin with."""
        return little(self._start)

    def check(self, body: bytes) -> None:
        """See that a body is no larger than what can be said.

        Raises:
            PayloadError: it is, or it is empty.
        """
        if not 1 <= len(body) <= self.most_body:
            raise PayloadError(Defect.TOO_LARGE, f"expected 1 to {self.most_body} bytes, got {len(body)}")

    def fold(self, state: bytes, epoch: int, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        """The state as it was."""
        return state
