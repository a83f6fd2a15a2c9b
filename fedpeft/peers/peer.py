"""A peer: what it holds, what it may say, and how its epochs follow each other. It knows no network."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import IdentityError, PayloadError, RefusedError
from fedpeft.keys.signing import SigningKey, digest, verified
from fedpeft.peers.chains import Chains, Taking
from fedpeft.peers.closing import Closing
from fedpeft.peers.cut import Certificate, Cut, Kind, Proposal, Vote, quorum
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.roster import Roster
from fedpeft.peers.segment import Fork, Segment
from fedpeft.peers.snapshot import Snapshot
from fedpeft.peers.store import Store


def _nobody(text: str) -> None:
    pass


@dataclass(frozen=True)
class Terms:
    """What all peers of a run have agreed on.

    Args:
        run: hash of the run's description, 32 bytes.
        organiser: public key of who signs rosters.
        most_segments: of a member in an epoch; with so many, its part of the epoch is done.
        patience_s: seconds that an epoch waits for members who have not done their part, and the closing for messages.
    """

    run: bytes
    organiser: bytes
    most_segments: int = 16
    patience_s: float = 60.0

    @property
    def root(self) -> bytes:
        """What stands for the cut before the first epoch."""
        return digest("run", self.run, self.organiser)


class Peer:
    """One of equals. Every method may be called from any thread.

    It publishes and votes only once it has heard from more than two thirds of the roster since it started: by then a
    folder that is older than what was published has shown, and the peer sits out until nothing it forgot can be open.

    Args:
        terms: of the run.
        key: what it signs with; its member is the one on the roster with this key.
        roster: of the organiser, as new as can be had.
        ledger: what bodies mean.
        store: what survives a crash.
        restored: the store comes from a backup, or was lost: sit out the epoch that is open when enough others have
            been met, and the one after it, in which it may have published before.
        alarm: told of what people should know.

    Raises:
        IdentityError: the roster is not the organiser's, or does not know the key.
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
        restored: bool = False,
        alarm: Callable[[str], None] = _nobody,
    ) -> None:
        self.terms, self.ledger = terms, ledger
        self._key, self._store, self._alarm = key, store, alarm
        self.lock = threading.RLock()
        self._rosters = {known.hash: known for known in (roster.check(terms.organiser),)}
        self._heard: set[int] = set()
        self._silent = 0
        self._restored = restored
        self._loading = True
        kept = store.snapshot()
        if kept is None:
            self._enter(1, terms.root, (), roster, ledger.beginning())
        else:
            self._follow(Snapshot.from_bytes(kept, terms.run, terms.organiser, 0, ledger.most_bytes))
        for record in map(pb.Batch.FromString, store.records()):
            self._silent = max(self._silent, record.silent)
            self.take(record)
        self._loading = False

    def _enter(self, epoch: int, root: bytes, barred: Iterable[int], roster: Roster, state: bytes) -> None:
        """Begin an epoch with nothing in it."""
        self.epoch, self.root, self.barred = epoch, root, tuple(barred)
        self.roster, self.state = roster, state
        self.number = next((m.number for m in roster.members if m.key == self._key.public), 0)
        keys = {m.number: m.key for m in roster.members if m.number not in self.barred}
        self.chains = Chains(self.terms.run, epoch, root, keys, self.terms.most_segments, self.ledger.check)
        self.closing = Closing(epoch, sorted(roster.by_number), self.number or None, self.terms.patience_s / 10)
        self._since: float | None = None
        self._judged: dict[bytes, bool] = {}

    def _follow(self, snapshot: Snapshot) -> None:
        cut = snapshot.cut
        self._rosters |= {snapshot.roster.hash: snapshot.roster, snapshot.next.hash: snapshot.next}
        self._enter(cut.epoch + 1, cut.hash, cut.barred, snapshot.next, snapshot.state)

    # What it holds

    @property
    def newest_roster(self) -> Roster:
        """The newest that the organiser signed, as far as is known here."""
        return max(self._rosters.values(), key=lambda roster: roster.serial)

    def current(self) -> bytes:
        """The state with all that is known of the open epoch."""
        with self.lock:
            return self._folded({peer: count for peer, (count, _) in self.chains.heads().items()})

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
        heard = (self._heard | {self.number}) & self.roster.by_number.keys()
        return len(heard) >= quorum(len(self.roster.members))

    def heard_from(self, peer: int) -> None:
        """Note that all that a member holds has been compared with what is held here."""
        with self.lock:
            self._heard.add(peer)
            if self._restored and self._enough_heard():
                self._restored = False
                self._sit_out()

    def _sit_out(self) -> None:
        """Say nothing until an epoch opens that cannot have been open before.

        When more than two thirds are in an epoch, nobody is further than the next: that took votes of more than two
        thirds in this one.
        """
        self._silent = self.epoch + 1
        self._keep(pb.Batch(silent=self._silent), durable=True)

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
            following = self.epoch, self.chains.count(self.number) + 1 if self.number in self.chains.keys else 0
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
            said = pb.Batch(run=self.terms.run, epoch=self.epoch)
            while (word := self.closing.say(now, self._ready(now), self._propose, self._judge)) is not None:
                kept = pb.Batch()
                if isinstance(word, Vote):
                    vote = word.signed(self.terms.run, self._key)
                    kept.votes.append(vote.to_proto())
                    self._keep(kept, durable=True)
                    self.closing.add(vote)
                else:
                    proposal = word.signed(self._key)
                    kept.proposals.append(proposal.to_proto())
                    self._keep(kept, durable=True)
                    self.closing.add(proposal)
                said.MergeFrom(kept)
            self._close()
            return said

    # What it is told

    def take(self, batch: pb.Batch) -> int:
        """Add what is new and right of a batch; how much that was. What is wrong is left out, and nothing else.

        Segments, votes and proposals of another epoch are left out; rosters count whenever they come.
        """
        with self.lock:
            taken = self._take_roster(batch) if batch.HasField("roster") else 0
            if batch.epoch not in (0, self.epoch):
                return taken
            kept = pb.Batch()
            for segment in batch.segments:
                taken += self._take_segment(segment, kept)
            for fork in batch.forks:
                taken += self._take_fork(Fork.from_proto(fork), kept)
            for proposal in batch.proposals:
                taken += self._take_proposal(proposal, kept)
            for vote in batch.votes:
                taken += self._take_vote(vote, kept)
            if kept.ByteSize():
                self._keep(kept, durable=bool(kept.forks))
            return taken

    def adopt(self, data: bytes) -> bool:
        """Go on from a snapshot that somebody sent; whether it is newer than what is held.

        Raises:
            PayloadError: it is none.
            IdentityError: it was not decided by this run's members.
        """
        with self.lock:
            snapshot = Snapshot.from_bytes(
                data, self.terms.run, self.terms.organiser, self.roster.serial, self.ledger.most_bytes
            )
            if snapshot.cut.epoch < self.epoch:
                return False
            if snapshot.cut.epoch == self.epoch and snapshot.cut.before != self.root:
                raise IdentityError(f"a snapshot of epoch {self.epoch} that does not follow the cut held here")
            self._store.begin(snapshot.cut.epoch, data)
            self._follow(snapshot)
            return True

    def snapshot(self) -> bytes | None:
        """The last closed epoch; None in the first."""
        with self.lock:
            return self._store.snapshot()

    def _take_roster(self, batch: pb.Batch) -> int:
        try:
            roster = Roster.from_proto(batch.roster, self.terms.run).check(self.terms.organiser)
        except IdentityError as error:
            self._alarm(str(error))
            return 0
        if roster.hash in self._rosters or roster.serial <= self.newest_roster.serial:
            return 0
        self._rosters[roster.hash] = roster
        self._keep(pb.Batch(roster=batch.roster), durable=True)
        return 1

    def _take_segment(self, message: pb.Segment, kept: pb.Batch) -> int:
        try:
            taking = self.chains.take(Segment.from_proto(message))
        except RefusedError:
            return 0
        if taking == Taking.FORKED:
            fork = self.chains.forks[message.peer]
            kept.forks.append(fork.to_proto())
            self._tell_of(fork)
        elif taking == Taking.NEW:
            kept.segments.append(message)
            if message.peer == self.number and not self._loading and self.epoch > self._silent:
                self._sit_out()
                self._alarm(
                    f"others hold segment {message.number} of this peer, which its own folder does not: the folder is "
                    f"older than what was published. It sits out epochs {self.epoch} and {self.epoch + 1}"
                )
        return taking in (Taking.NEW, Taking.FORKED)

    def _take_fork(self, fork: Fork, kept: pb.Batch) -> int:
        try:
            new = self.chains.bar(fork)
        except RefusedError:
            return 0
        if new:
            kept.forks.append(fork.to_proto())
            self._tell_of(fork)
        return new

    def _tell_of(self, fork: Fork) -> None:
        self._judged.clear()
        if not self._loading:
            _, peer, number = fork.place
            self._alarm(f"peer {peer} signed two segments {number} in epoch {self.epoch}; it is barred from there")

    def _take_vote(self, message: pb.Vote, kept: pb.Batch) -> int:
        member = self.roster.by_number.get(message.peer)
        if member is None or message.epoch != self.epoch or not self.closing.wants(message.view):
            return 0
        try:
            vote = Vote.from_proto(message)
        except PayloadError:
            return 0
        if message.peer in self.closing.votes.get((vote.view, vote.kind), {}):
            return 0
        if not verified(member.key, vote.hash(self.terms.run), vote.signature) or not self.closing.add(vote):
            return 0
        kept.votes.append(message)
        return 1

    def _take_proposal(self, message: pb.Proposal, kept: pb.Batch) -> int:
        if message.view in self.closing.proposals or not self.closing.wants(message.view):
            return 0
        try:
            proposal = Proposal.from_proto(message, self.terms.run)
        except PayloadError:
            return 0
        proposer = self.roster.by_number[self.closing.proposer(proposal.view)]
        right = proposal.cut.epoch == self.epoch and -1 <= proposal.valid_view < max(1, proposal.view)
        if not right or not verified(proposer.key, proposal.hash(), proposal.signature):
            return 0
        self.closing.add(proposal)
        kept.proposals.append(message)
        return 1

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
        return now - self._since >= self.terms.patience_s or all(
            self.chains.count(peer) >= self.terms.most_segments
            for peer in self.chains.keys
            if peer not in self.chains.forks
        )

    def _propose(self) -> Cut:
        """The cut of all that is held."""
        heads = self.chains.heads()
        return Cut(
            self.terms.run,
            self.epoch,
            self.root,
            tuple((peer, count, link) for peer, (count, link) in heads.items()),
            tuple(sorted({*self.barred, *self.chains.forks})),
            self.newest_roster.hash,
            hashlib.sha256(self._folded({peer: count for peer, (count, _) in heads.items()})).digest(),
        )

    def _judge(self, cut: Cut) -> bool | None:
        """Whether a cut is right; None where something that it names is not held yet."""
        if cut.hash not in self._judged:
            right = self._judged_anew(cut)
            if right is None:
                return None
            self._judged[cut.hash] = right
        return self._judged[cut.hash]

    def _judged_anew(self, cut: Cut) -> bool | None:
        if cut.before != self.root or not {*self.barred, *self.chains.forks} <= set(cut.barred):
            return False
        for peer, count, link in cut.heads:
            if peer not in self.chains.keys or count > self.terms.most_segments:
                return False
            held = self.chains.link(peer, count)
            if held is None and peer not in self.chains.forks:
                return None
            if held != link:
                return False
        if not set(cut.barred) <= {*self.barred, *self.chains.forks} or cut.roster not in self._rosters:
            return None
        if self._rosters[cut.roster].serial < self.roster.serial:
            return False
        state = self._folded({peer: count for peer, count, _ in cut.heads})
        return hashlib.sha256(state).digest() == cut.state

    def _folded(self, counts: dict[int, int]) -> bytes:
        bodies = {
            peer: [segment.body for segment in self.chains.segments(peer, 1, count)] for peer, count in counts.items()
        }
        return self.ledger.fold(self.state, self.epoch, bodies)

    def _close(self) -> None:
        """Go over to the next epoch where this one was decided, and all that counts of it is here."""
        decision = self.closing.decision()
        if decision is None or not self._judge(decision.cut):
            return
        cut = decision.cut
        votes = [vote for vote in self.closing.votes[decision.view, Kind.CLOSE].values() if vote.cut == cut.hash]
        snapshot = Snapshot(
            Certificate(cut, decision.view, tuple(sorted(votes, key=lambda vote: vote.peer))),
            self.roster,
            self._rosters[cut.roster],
            self._folded({peer: count for peer, count, _ in cut.heads}),
        )
        self._store.begin(cut.epoch, snapshot.to_bytes())
        self._follow(snapshot)
