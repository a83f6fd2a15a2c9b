"""The course of a run without an end that all agree on: rounds of gossip with the neighbours."""

import time
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import RunError
from fedpeft.peers.gossip_work import GossipWork
from fedpeft.peers.peer import Peer


class GossipCourse:
    """A peer that trains, tells its neighbours, waits for what they tell, and goes towards them.

    A round waits for a neighbour as long as the run's patience, counted from when this peer told and may speak. Whoever
    was missed is not waited for again until it has told of a round by the time that this peer tells of the next. A peer
    that is proven to have signed two segments under one number compares for as long, so that its neighbours hear of it.

    Args:
        peer: what it holds.
        work: what it does in a round.
        rounds: after so many it is over.
        ended: told of the own adapter after each round, on the thread that trains, the last one included.
        now: seconds of a clock that only rises.
    """

    votes = False

    def __init__(
        self,
        peer: Peer,
        work: GossipWork,
        rounds: int,
        ended: Callable[[int, Float[Tensor, " d"]], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._peer, self._work, self._rounds, self._ended, self._now = peer, work, rounds, ended, now
        self._seen, self._since = 0, now()
        self._missed: frozenset[int] = frozenset()
        self._barred: float | None = None

    def over(self) -> bool:
        """Whether all rounds are done, and that was told."""
        return self._seen >= self._rounds

    def waits_for(self) -> str:
        """Whom this peer waits for; "" where it has something to do."""
        if self.over():
            return "the run is over"
        if self._barred is not None:
            return "its neighbours to hear that it is barred"
        if not self._peer.may_speak():
            return "its neighbours to be met: more than two thirds of them and this peer, or all that it may forget"
        if awaited := sorted(self._awaited()):
            return f"segment {self._work.trained} of peer{'s' * (len(awaited) > 1)} {', '.join(map(str, awaited))}"
        return ""

    def turn(self) -> pb.Batch | None:
        """Tell of a round that is done; then publish a segment, or go towards the neighbours."""
        peer, work = self._peer, self._work
        if self._left_out():
            return None
        if peer.may_speak():
            work.align()
        else:
            self._since = self._now()
        if self._seen < work.pulled <= work.said:
            self._ended(work.pulled, work.adapter)
            self._seen = work.pulled
        if self.over() or self.waits_for():
            return None
        return self._told() if work.said == work.pulled else self._pulled()

    def vote(self, now: float) -> pb.Batch:
        """Nothing: no epoch is closed."""
        return pb.Batch()

    def _told(self) -> pb.Batch:
        body = self._work.segment()
        self._missed &= self._work.lacking(self._work.pulled)
        segment = self._peer.publish(body, self._peer.epoch, self._work.trained)
        self._since = self._now()
        return pb.Batch(epoch=self._peer.epoch, segments=[segment.to_proto()] if segment is not None else [])

    def _pulled(self) -> pb.Batch:
        self._missed = self._work.lacking(self._work.trained)
        self._work.pull()
        return pb.Batch()

    def _awaited(self) -> frozenset[int]:
        """The neighbours that a round which was told of waits for."""
        work = self._work
        if work.said == work.pulled or self._now() - self._since >= self._peer.terms.patience_s:
            return frozenset()
        return work.lacking(work.trained) - self._missed

    def _left_out(self) -> bool:
        """Whether the neighbours leave this peer out; it goes on comparing for a while, so that all are told why.

        Raises:
            RunError: that while is over.
        """
        with self._peer.lock:
            barred = self._peer.number in self._peer.chains.forks
        if barred and self._barred is None:
            self._barred = self._now()
        if self._barred is None or self._now() - self._barred < self._peer.terms.patience_s:
            return barred
        raise RunError(
            "two different segments with the signature of this peer are known for one number: nobody hears it any "
            "more. Its keys were used twice, or stolen; it can take part in another run, with new ones"
        )
