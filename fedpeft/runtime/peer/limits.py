"""What both ends of a line between peers keep to."""

from dataclasses import dataclass

from fedpeft.peers.exchange import LONGEST_BESIDE
from fedpeft.runtime.grpc import endpoint

SERVICE = "fedpeft.v1.Peers"
STREAMS = frozenset({"Segments", "Snapshot"})
LONGEST_DEADLINE_S = 60.0
_SLOWEST = 64_000  # bytes a second of a line that is still of use


@dataclass(frozen=True)
class Limits:
    """What both ends of a line keep to.

    Args:
        deadline_s: seconds that a call without much to carry may take, up to 60.
        largest_reply: bytes of the largest stream of replies that is usual; it gives a call more time.
        most_body: bytes of the largest segment.
        keepalive_s: seconds of silence after which an end asks whether the other is alive.
    """

    deadline_s: float = 10.0
    largest_reply: int = 1 << 16
    most_body: int = 1 << 16
    keepalive_s: float = 20.0

    def seconds(self, method: str, request: bytes) -> float:
        """The deadline of a call."""
        expected = self.largest_reply if method in STREAMS else 0
        return self.deadline_s + (len(request) + expected) / _SLOWEST

    @property
    def exchange_s(self) -> float:
        """What all calls of one exchange may take together; what has been taken until then stays taken."""
        return 2 * (self.deadline_s + (self.largest_reply + self.most_body) / _SLOWEST)

    @property
    def longest_s(self) -> float:
        """What no call takes longer than, whatever the other end has set."""
        return LONGEST_DEADLINE_S + (self.most_body + LONGEST_BESIDE + self.largest_reply) / _SLOWEST

    def options(self) -> list[tuple[str, object]]:
        """Channel arguments: a message holds a segment, and what a batch has beside it."""
        options = dict(endpoint.options(self.keepalive_s))
        largest = LONGEST_BESIDE + self.most_body
        options["grpc.max_receive_message_length"] = options["grpc.max_send_message_length"] = largest
        # Pings that measure the bandwidth cost as much as a segment of scalars; messages are small.
        options["grpc.http2.bdp_probe"] = 0
        # Pauses between attempts are the contacts'; gRPC's own would go on for minutes after a line is whole again.
        options["grpc.use_local_subchannel_pool"] = 1
        return list(options.items())
