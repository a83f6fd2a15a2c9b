"""A running peer: it compares, tells, votes, trains and keeps house, each on a thread of its own."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import FedpeftError, JournalError, UnreachableError
from fedpeft.peers.exchange import exchange
from fedpeft.peers.peer import Peer
from fedpeft.peers.roster import Member
from fedpeft.runtime.peer.contacts import Contacts
from fedpeft.runtime.peer.course import Course
from fedpeft.runtime.peer.dialling import Lines
from fedpeft.runtime.peer.limits import Limits
from fedpeft.runtime.peer.service import Service
from fedpeft.runtime.peer.trust import Trust

_HOUSE_S = 1.0
_WAIT_S = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ways:
    """How a peer goes about talking to others.

    Args:
        listen: "host:port" to listen on; None for a peer that only dials.
        advertised: where others reach it; "" for where it listens, if it does.
        every_s: seconds between two exchanges with a member drawn at random.
        fanout: how many members are given at once what is new here; where neighbours alone are heard, all of them are.
        stay_s: seconds that others can still ask once its course is over.
    """

    listen: str | None
    advertised: str = ""
    every_s: float = 2.0
    fanout: int = 3
    stay_s: float = 60.0


class Node:
    """A peer on the network.

    Args:
        peer: what it holds.
        course: what it does, and when.
        trust: who the others are.
        contacts: where they are.
        ways: how it talks.
        limits: of calls.
        house: called once a second, to look for what has changed and to tell how all stands.
        say: told what happens, a line each.

    Raises:
        RunError: the address cannot be listened on.
    """

    def __init__(
        self,
        peer: Peer,
        course: Course,
        trust: Trust,
        contacts: Contacts,
        ways: Ways,
        limits: Limits,
        house: Callable[[], None] = lambda: None,
        say: Say = lambda text: None,
    ) -> None:
        self.peer, self.contacts, self._course, self._trust, self._ways = peer, contacts, course, trust, ways
        self._house, self._say = house, say
        self._changed = threading.Condition()
        self._stopping, self._news = False, 0
        self._outbox: list[pb.Batch] = []
        self._broken: BaseException | None = None
        self._finished = threading.Event()
        self._lines = Lines(trust, contacts, self._greeting, limits)
        self._service = (
            None
            if ways.listen is None
            else Service(peer, trust, contacts, self._greeting, ways.listen, self._heard, limits)
        )

    @property
    def address(self) -> str:
        """Where others reach it; "" for nowhere."""
        return self._ways.advertised or (self._service.address if self._service else "")

    def others(self) -> dict[int, Member]:
        """The other members whom it hears, by number."""
        others = self._trust.others()
        heard = self.peer.hearing.of(self.peer.number, others)
        return {number: member for number, member in others.items() if number in heard}

    def run(self) -> bool:
        """Take part until the course is over and some time has passed, or `stop` was called.

        Returns:
            Whether the course is over.

        Raises:
            Exception: what a thread could not go on with.
        """
        loops = {
            "exchange": self._exchange,
            "teller": self._tell,
            "trainer": self._train,
            "house": self._keep_house,
        }
        if self._course.votes:
            loops["voter"] = self._vote
        threads = [threading.Thread(target=self._guarded, args=(loop,), name=name) for name, loop in loops.items()]
        if self._service:
            self._service.start()
        for thread in threads:
            thread.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._finished.is_set())
                self._changed.wait_for(lambda: self._stopping, self._ways.stay_s)
        finally:
            self.stop()
            self._lines.close()
            for thread in threads:
                thread.join()
            if self._service:
                self._service.close()
        if self._broken is not None:
            raise self._broken
        return self._finished.is_set()

    def stop(self) -> None:
        """Make `run` return, once the segment at hand is published or given up; may be called from any thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def waits_for(self) -> str:
        """What this peer waits for at the moment; "" where it has something to do."""
        return self._course.waits_for()

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self._broken = error
            self.stop()

    # Others

    def _exchange(self) -> None:
        while not self._stopping:
            # Until enough have been met, nothing may be said: so they are met one after the other.
            share = 0.05 if self._meet(time.monotonic()) else random.uniform(0.5, 1.5)  # noqa: S311 - spreads the load
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, self._ways.every_s * share)

    def _meet(self, now: float) -> bool:
        """Compare all that is held with somebody; whether that was somebody new."""
        number = self.contacts.choose(self.others(), now)
        if number is None:
            return False
        new = not self.contacts.seen(number).agreed
        try:
            exchange(self.peer, number, self._lines.call(number))
        except UnreachableError:
            return new
        except JournalError:
            raise
        except FedpeftError as error:
            self.contacts.missed(number, time.monotonic(), str(error))
            self._say(f"peer {number} says what cannot be used: {error}")
            return new
        finally:
            self._heard()
        self.contacts.agreed(number)
        return new

    def _vote(self) -> None:
        while not self._stopping:
            news, before = self._news, self.peer.epoch
            self._spread(self._course.vote(time.monotonic()))
            if self.peer.epoch != before:
                self._heard()
            self._wait(self._ways.every_s, news)

    def _spread(self, batch: pb.Batch) -> None:
        """Have others told of what is new, unless that is nothing."""
        if batch.segments or batch.votes or batch.proposals:
            with self._changed:
                self._outbox.append(batch)
            self._heard()

    def _tell(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._outbox)
                batches, self._outbox = self._outbox, []
            for batch in batches:
                others = self.others()
                most = self._ways.fanout if self.peer.hearing.all else len(others)  # neighbours alone pass nothing on
                self._lines.push(self.contacts.some(others, most), batch.SerializeToString())

    def _heard(self) -> None:
        """Something may be new: see what there is to say to it, and to do."""
        with self._changed:
            self._news += 1
            self._changed.notify_all()

    def _wait(self, seconds: float, news: int | None) -> None:
        """Wait, unless something is new beside so many news; None: whatever is new."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or news not in (None, self._news), seconds)

    def _greeting(self) -> pb.Greeting:
        known = self.contacts.told(self._trust.others())
        return pb.Greeting(run=self.peer.terms.run, peer=self._trust.own, address=self.address, known=known)

    # Work

    def _train(self) -> None:
        while not self._stopping:
            news = self._news
            told = self._course.turn()
            if self._course.over():
                with self._changed:
                    self._finished.set()
                    self._changed.notify_all()
                return
            if told is None:
                self._wait(_WAIT_S, None if self._course.votes else news)
            else:
                self._spread(told)

    def _keep_house(self) -> None:
        while not self._stopping:
            self._house()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, _HOUSE_S)
