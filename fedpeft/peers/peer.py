"""A peer: what it holds, what it may say, and how its epochs follow each other. It knows no network."""

import threading
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import IdentityError, JournalError
from fedpeft.keys.signing import SigningKey
from fedpeft.peers.chains import Chains
from fedpeft.peers.closing import Closing
from fedpeft.peers.cut import Certificate, Cut, Kind, Vote, quorum
from fedpeft.peers.epoch import Epoch
from fedpeft.peers.hearing import EVERYBODY, Hearing
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.roster import Roster
from fedpeft.peers.segment import Segment
from fedpeft.peers.snapshot import Snapshot
from fedpeft.peers.store import Store
from fedpeft.peers.taking import put, take
from fedpeft.peers.terms import Terms

_UNTIL_MET = (1 << 32) - 1  # silent until enough others have told which epoch is open


def _nobody(text: str) -> None:
    pass


class Peer:
    """One of equals. Every method may be called from any thread.

    It publishes and votes only once it has heard from more than two thirds of those whom it hears since it started: by
    then a folder that is older than what was published has shown, and the peer sits out until nothing it forgot can be
    open.

    Args:
        terms: of the run.
        key: what it signs with; its member is the one on the roster with this key.
        roster: of the organiser, as new as can be had.
        ledger: what bodies mean.
        store: what survives a crash.
        hearing: whose chains are held, here and by others.
        restored: the store comes from a backup, or was lost: sit out the epoch that is open when enough others have
            been met, and the one after it, in which it may have spoken before. That outlasts a restart.
        alarm: told of what people should know.

    Raises:
        IdentityError: the roster is not the organiser's.
        JournalError: the store is damaged, or of another run.
    """

    def __init__(
        self,
        terms: Terms,
        key: SigningKey,
        roster: Roster,
        ledger: Ledger,
        store: Store,
        *,
        hearing: Hearing = EVERYBODY,
        restored: bool = False,
        alarm: Callable[[str], None] = _nobody,
    ) -> None:
        self.terms, self.ledger, self.hearing = terms, ledger, hearing
        self._key, self._store, self._alarm = key, store, alarm
        self.lock = threading.RLock()
        self._rosters = {roster.check(terms.organiser).hash: roster}
        self._heard: set[int] = set()
        self._silent = 0
        self._since: float | None = None
        self._insisting = False
        self._load(roster)
        if restored:
            self._be_silent(_UNTIL_MET)
            self._settle()

    def _load(self, roster: Roster) -> None:
        self._loading = True
        records = list(map(_record, self._store.records()))
        if records and records[0].run != self.terms.run:
            raise JournalError(f"the store is of run {records[0].run.hex()[:16]}, not {self.terms.run.hex()[:16]}")
        kept = self._store.snapshot()
        if kept is not None:
            snapshot = Snapshot.from_bytes(kept, self.terms.run, self.terms.organiser, 0, self.ledger.most_bytes)
            self._follow(snapshot)
        else:
            first = Roster.from_proto(records[0].roster, self.terms.run) if records else roster
            self._rosters[first.check(self.terms.organiser).hash] = first
            self._enter(1, self.terms.root(first.hash), (), first, self.ledger.beginning())
        for record in records:
            self._silent = record.silent if record.HasField("silent") else self._silent
            self.take(record)
        self._loading = False
        if kept is None and not records:
            self._keep(pb.Batch(run=self.terms.run, roster=roster.to_proto()), durable=True)

    def _enter(self, epoch: int, root: bytes, barred: Sequence[int], roster: Roster, state: bytes) -> None:
        """Begin an epoch with nothing in it."""
        own = self._key.public
        self._open = Epoch(self.terms, self.ledger, epoch, root, barred, roster, state, own, self.hearing)
        self._since, self._insisting = None, False
        newest = self.newest_roster
        self._rosters = {known.hash: known for known in (roster, newest)}

    def _follow(self, snapshot: Snapshot) -> None:
        cut = snapshot.cut
        self._rosters[snapshot.next.hash] = snapshot.next
        self._enter(cut.epoch + 1, cut.hash, cut.barred, snapshot.next, snapshot.state)

    def _go_on(self, snapshot: Snapshot) -> None:
        """Make the end of an epoch durable, and with it what must outlast it; then begin the next."""
        kept = pb.Batch(run=self.terms.run, epoch=snapshot.cut.epoch + 1, roster=self.newest_roster.to_proto())
        kept.silent = self._silent
        unknown = self.chains.forks.keys() - set(snapshot.cut.barred)
        kept.forks.extend(self.chains.forks[peer].to_proto() for peer in sorted(unknown))
        self._store.begin(snapshot.cut.epoch, snapshot.to_bytes(), kept.SerializeToString())
        self._follow(snapshot)
        take(self._open, self.terms.run, kept)

    # What it holds

    @property
    def epoch(self) -> int:
        """The epoch that is open here, from 1."""
        return self._open.number

    @property
    def root(self) -> bytes:
        """Hash of the cut before the open epoch."""
        return self._open.root

    @property
    def state(self) -> bytes:
        """The state that the open epoch began with."""
        return self._open.state

    @property
    def roster(self) -> Roster:
        """Of the open epoch."""
        return self._open.roster

    @property
    def barred(self) -> tuple[int, ...]:
        """Members that were proven to cheat in epochs before."""
        return self._open.barred

    @property
    def number(self) -> int:
        """Its own number in the open epoch; 0 where it is on no roster."""
        return self._open.me

    @property
    def chains(self) -> Chains:
        """What members published in the open epoch."""
        return self._open.chains

    @property
    def closing(self) -> Closing:
        """How far the closing of the open epoch is."""
        return self._open.closing

    @property
    def newest_roster(self) -> Roster:
        """The newest that the organiser signed, as far as is known here."""
        with self.lock:
            return max(self._rosters.values(), key=lambda roster: roster.serial)

    def current(self) -> bytes:
        """The state with all that is known of the open epoch."""
        with self.lock:
            return self._open.current()

    def done(self) -> bool:
        """Whether it has published all that an epoch takes, or may not publish."""
        with self.lock:
            barred = self.number not in self.chains.keys or self.number in self.chains.forks
            return barred or self.chains.count(self.number) >= self.terms.most_segments

    def may_speak(self) -> bool:
        """Whether it may publish and vote now."""
        with self.lock:
            return self.number in self.roster.by_number and self._enough_heard() and self.epoch > self._silent

    def _enough_heard(self) -> bool:
        circle = self.hearing.of(self.number, self.roster.by_number)
        return len((self._heard | {self.number}) & circle) >= quorum(len(circle))

    def heard_from(self, peer: int) -> None:
        """Note that all that a member holds has been compared with what is held here."""
        with self.lock:
            self._heard.add(peer)
            self._settle()

    def _settle(self) -> None:
        """Say for how long a peer that forgot something is silent, once more than two thirds of the others were met.

        One of them at least, honest, voted in the epoch before the last in which this peer spoke; so none after the one
        that follows the open one has been opened. Of three members none may lie, and of neighbours, who alone hold what
        this peer published, none is left out: all others are heard, and have given back all that matters.
        """
        others = self.hearing.of(self.number, self.roster.by_number) - {self.number}
        every = len(others) <= 2 or not self.hearing.all
        if self._silent == _UNTIL_MET and len(self._heard & others) >= (len(others) if every else quorum(len(others))):
            self._be_silent(self.epoch - 1 if every else self.epoch + 1)

    def _be_silent(self, last: int) -> None:
        self._silent = last
        self._keep(pb.Batch(silent=last), durable=True)

    def forgot(self, what: str) -> None:
        """Be silent until nothing else can be said than was said: the own log lacks something of it.

        Args:
            what: who holds what of this peer.
        """
        with self.lock:
            if self.epoch > self._silent:
                self._heard.clear()
                self._be_silent(_UNTIL_MET)
                self._alarm(
                    f"{what} of this peer in epoch {self.epoch}, and the log in its folder does not: it is older than "
                    "what was published. This peer is silent until it can say nothing else than it did"
                )
                self._settle()

    # What it says

    def publish(self, body: bytes, epoch: int, number: int) -> Segment | None:
        """Add a segment to the own chain; it is on the disk before this returns, and before anybody sees it.

        Args:
            body: what is published.
            epoch: that it was made in.
            number: of the segment that it was made to be.

        Returns:
            The segment; None where it came too late, since that is not what is published next any more.

        Raises:
            PayloadError: the ledger does not allow the body.
        """
        with self.lock:
            self.ledger.check(body)
            following = self.epoch, self.chains.count(self.number) + 1
            if (epoch, number) != following or not self.may_speak() or self.done():
                return None
            segment = Segment(epoch, self.number, number, body)
            segment = segment.signed(self.terms.run, self.chains.last(self.number), self._key)
            self._keep(pb.Batch(segments=[segment.to_proto()]), durable=True)
            self.chains.take(segment)
            return segment

    def advance(self, now: float) -> pb.Batch:
        """Say what is to be said about closing the epoch, and close it once that is decided; what was said, for others.

        Args:
            now: seconds of a clock that only rises.
        """
        with self.lock:
            said = pb.Batch(epoch=self.epoch)
            while (word := self.closing.say(now, self._ready(now), self._propose, self._judge)) is not None:
                kept = pb.Batch()
                signed = word.signed(self.terms.run, self._key) if isinstance(word, Vote) else word.signed(self._key)
                put(kept, signed)
                self._keep(kept, durable=True)
                self.closing.add(signed)
                said.MergeFrom(kept)
            self._close()
            return said

    # What it is told

    def take(self, batch: pb.Batch) -> int:
        """Add what is new and right of a batch; how much that was. What is wrong is left out, and nothing else.

        Segments, votes and proposals of another epoch are left out; rosters and proofs count whenever they come.
        """
        with self.lock:
            taken = self._take_roster(batch) if batch.HasField("roster") else 0
            if batch.epoch not in (0, self.epoch):
                batch = pb.Batch(forks=batch.forks)
            kept = take(self._open, self.terms.run, batch)
            if kept.ByteSize() and not self._loading:
                self._keep(kept, durable=self._notice(kept))
            return taken + len(kept.segments) + len(kept.forks) + len(kept.votes) + len(kept.proposals)

    def adopt(self, data: bytes) -> bool:
        """Go on from a snapshot that somebody sent, where epochs are closed; whether it is newer than what is held.

        Whoever is on no roster of an epoch yet believes none before that of the newest roster it knows: it may not
        speak before, and members who were dismissed since could have signed any other.

        Raises:
            PayloadError: it is none; or it comes without its state, and the segments that lead there are not held.
            IdentityError: it was not decided by this run's members.
        """
        with self.lock:
            if not self._open.closes:
                return False
            snapshot = Snapshot.from_bytes(
                data,
                self.terms.run,
                self.terms.organiser,
                self.roster.serial if self.number else self.newest_roster.serial,
                self.ledger.most_bytes,
                lambda cut: self._open.state_after(cut) if cut.before == self.root else None,
            )
            if snapshot.cut.epoch < self.epoch:
                return False
            if not self._follows(snapshot):
                raise IdentityError(
                    f"a snapshot of epoch {snapshot.cut.epoch} that does not follow from epoch {self.epoch} as it is "
                    "here, or was decided under an older roster"
                )
            self._go_on(snapshot)
            return True

    def _follows(self, snapshot: Snapshot) -> bool:
        if self.epoch == 1 and snapshot.roster.serial < self.roster.serial:
            return True  # a newcomer: its roster is newer than the one that the run goes by
        if snapshot.cut.epoch == self.epoch:
            return snapshot.cut.before == self.root and snapshot.roster.hash == self.roster.hash
        return snapshot.roster.serial >= self.roster.serial

    def snapshot(self) -> bytes | None:
        """The last closed epoch; None in the first."""
        with self.lock:
            return self._store.snapshot()

    def _take_roster(self, batch: pb.Batch) -> int:
        try:
            roster = Roster.from_proto(batch.roster, self.terms.run).check(self.terms.organiser)
        except IdentityError:
            return 0
        if roster.hash in self._rosters or roster.serial <= self.newest_roster.serial:
            return 0
        known = self._rosters.values() if self._open.closes else (self.roster,)
        self._rosters = {each.hash: each for each in (*known, roster)}
        self._keep(pb.Batch(roster=roster.to_proto()), durable=True)
        return 1

    def _notice(self, kept: pb.Batch) -> bool:
        """Tell people of cheats, and be warned by what this peer forgot; whether there was anything of the kind."""
        for fork in kept.forks:
            self._alarm(f"peer {fork.peer} signed two segments {fork.number} in epoch {self.epoch}: it is barred there")
        said = [f"segment {segment.number}" for segment in kept.segments if segment.peer == self.number]
        said += ["a vote" for vote in kept.votes if vote.peer == self.number]
        said += ["a proposal" for word in kept.proposals if self.closing.proposer(word.view) == self.number]
        if said:
            self.forgot(f"others hold {said[-1]}")
        return bool(said or kept.forks)

    def _keep(self, batch: pb.Batch, *, durable: bool) -> None:
        if not self._loading:
            batch.epoch = self.epoch
            self._store.append(batch.SerializeToString(), durable=durable)

    # How an epoch ends

    def _ready(self, now: float) -> bool:
        if not self.may_speak():
            return False
        if self._since is None:
            self._since = now
        if not self._insisting and (now - self._since >= self.terms.patience_s or self._open.full()):
            self._insisting = True
            self._open.insist(self.newest_roster.serial)
        return self._insisting

    def _propose(self) -> Cut:
        return self._open.propose(self.newest_roster)

    def _judge(self, cut: Cut) -> bool | None:
        return self._open.judge(cut, self._rosters)

    def _close(self) -> None:
        """Go over to the next epoch where this one was decided, and all that counts of it is here."""
        decision = self.closing.decision()
        if decision is None:
            return
        cut = decision.cut
        following, state = self._rosters.get(cut.roster), self._open.state_after(cut)
        if following is None or state is None:
            return
        votes = [vote for vote in self.closing.votes[decision.view, Kind.CLOSE].values() if vote.cut == cut.hash]
        certificate = Certificate(cut, decision.view, tuple(sorted(votes, key=lambda vote: vote.peer)))
        self._go_on(Snapshot(certificate, self.roster, following, state))


def _record(data: bytes) -> pb.Batch:
    try:
        return pb.Batch.FromString(data)
    except DecodeError as error:
        raise JournalError(f"the store holds a record that is none: {error}") from None
