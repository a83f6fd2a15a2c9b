"""The course of a run with a log that all agree on: segments in epochs, which votes close."""

from collections.abc import Callable

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import PayloadError, RunError
from fedpeft.peers.peer import Peer
from fedpeft.peers.work import Work


class LogCourse:
    """A peer that publishes what its work makes, and votes.

    Args:
        peer: what it holds.
        work: what it publishes.
        epochs: after so many that are closed, nothing more is published and no other is closed.
        closed: told of the state after each epoch, on the thread that trains, the last one included.
        alarm: told of what people should see to.
    """

    votes = True

    def __init__(
        self,
        peer: Peer,
        work: Work,
        epochs: int,
        closed: Callable[[int, bytes], None],
        alarm: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._peer, self._work, self._epochs, self._closed, self._alarm = peer, work, epochs, closed, alarm
        self._seen = 0
        self._failed = 0, ""

    def over(self) -> bool:
        """Whether all epochs are closed, and that was told."""
        return self._seen >= self._epochs

    def waits_for(self) -> str:
        """Why this peer does not publish at the moment; "" where it may."""
        peer = self._peer
        with peer.lock:
            if peer.epoch > self._epochs:
                return "the run is over"
            if not peer.number:
                return f"an epoch whose roster has this peer; epoch {peer.epoch} has not"
            if not peer.may_speak():
                return "more than two thirds of the roster to be met, or for an epoch that it may take part in"
            if peer.done():
                return f"epoch {peer.epoch} to be closed"
            if self._failed[0] == peer.epoch:
                return f"epoch {peer.epoch} to be closed, for it could not train in it: {self._failed[1]}"
        return ""

    def turn(self) -> pb.Batch | None:
        """Tell of an epoch that was closed, then publish a segment."""
        with self._peer.lock:
            epoch, settled = self._peer.epoch, self._peer.state
        if epoch - 1 > self._seen:
            self._closed(epoch - 1, settled)
            self._seen = epoch - 1
        return None if self.over() or self.waits_for() else self._publish()

    def vote(self, now: float) -> pb.Batch:
        """Vote, and close the epoch where that is decided."""
        return self._peer.advance(now) if self._peer.epoch <= self._epochs else pb.Batch()

    def _publish(self) -> pb.Batch:
        peer = self._peer
        with peer.lock:
            epoch, me, state = peer.epoch, peer.number, peer.current() if self._work.live else peer.state
            number = peer.chains.count(me) + 1
        try:
            segment = peer.publish(self._work.segment(state, epoch, me, number), epoch, number)
        except (RunError, PayloadError) as error:
            self._failed = epoch, str(error)
            self._alarm(f"nothing more is published in epoch {epoch}: {error}")
            return pb.Batch()
        return pb.Batch(epoch=epoch, segments=[segment.to_proto()] if segment is not None else [])
