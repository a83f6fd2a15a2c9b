"""An epoch: what is held of it, what it would end with, and which ends are right."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from fedpeft.peers.chains import Chains
from fedpeft.peers.closing import Closing
from fedpeft.peers.cut import Cut
from fedpeft.peers.hearing import EVERYBODY, Hearing
from fedpeft.peers.ledger import Ledger
from fedpeft.peers.roster import Roster
from fedpeft.peers.terms import Terms


class Epoch:
    """What one peer knows of an epoch, from its beginning on.

    Args:
        terms: of the run.
        ledger: what bodies mean.
        number: from 1.
        root: hash of the cut before.
        barred: members that may not publish any more.
        roster: of those who publish and vote.
        state: that it begins with.
        key: public key of this peer, whose member has it.
        hearing: whose chains are held; where not all are, the epoch is never closed and votes are nothing.
    """

    def __init__(
        self,
        terms: Terms,
        ledger: Ledger,
        number: int,
        root: bytes,
        barred: Iterable[int],
        roster: Roster,
        state: bytes,
        key: bytes,
        hearing: Hearing = EVERYBODY,
    ) -> None:
        self.number, self.root, self.barred = number, root, tuple(barred)
        self.roster, self.state = roster, state
        self.me = next((member.number for member in roster.members if member.key == key), 0)
        self._run, self._ledger, self.closes = terms.run, ledger, hearing.all
        heard = hearing.of(self.me, roster.by_number) - set(self.barred)
        keys = {number: roster.by_number[number].key for number in sorted(heard)}
        self.chains = Chains(terms.run, number, root, keys, terms.most_segments, ledger.check)
        self.closing = Closing(number, sorted(roster.by_number), self.me or None, terms.patience_s / 10)
        self._least: dict[int, int] = {}
        self._least_serial = roster.serial

    def current(self) -> bytes:
        """The state with all that is held."""
        heads = self.chains.heads()
        return self._folded({p: [s.body for s in self.chains.segments(p)] for p in heads})

    def full(self) -> bool:
        """Whether all who may publish have published all that they may."""
        chains = self.chains
        return all(chains.count(peer) >= chains.most_segments for peer in chains.keys if peer not in chains.forks)

    def insist(self, serial: int) -> None:
        """From now on, judge wrong whatever leaves out what is held now, so that no proposer can leave anybody out.

        What comes later does not count: proposers come level with this in time, and some will be heard.

        Args:
            serial: of the newest roster that is known.
        """
        self._least = {peer: count for peer, (count, _) in self.chains.heads().items()}
        self._least_serial = serial

    def propose(self, following: Roster) -> Cut:
        """The cut of all that is held.

        Args:
            following: roster of the next epoch.
        """
        return Cut(
            self._run,
            self.number,
            self.root,
            tuple((peer, count, link) for peer, (count, link) in self.chains.heads().items()),
            tuple(sorted({*self.barred, *self.chains.forks})),
            following.hash,
            hashlib.sha256(self.current()).digest(),
        )

    def fits(self, cut: Cut) -> bool:
        """Whether a cut may be kept until it can be judged: it follows, and names nobody but members."""
        heads, known = {peer for peer, _, _ in cut.heads}, {*self.barred, *self.chains.keys}
        return cut.before == self.root and heads <= self.chains.keys.keys() and known >= set(cut.barred)

    def judge(self, cut: Cut, rosters: Mapping[bytes, Roster]) -> bool | None:
        """Whether a cut is right; None where something that it names is not held yet.

        Args:
            cut: that `fits`.
            rosters: those that are known, by hash.
        """
        barred = {*self.barred, *self.chains.forks}
        if not barred <= set(cut.barred):
            return False
        counts = {peer: count for peer, count, _ in cut.heads}
        if any(counts.get(peer, 0) < least for peer, least in self._least.items() if peer not in self.chains.forks):
            return False
        for peer, count, link in cut.heads:
            held = self.chains.link(peer, count)
            if held != link:
                waiting = held is None and peer not in self.chains.forks and count <= self.chains.most_segments
                return None if waiting else False
        if not set(cut.barred) <= barred or cut.roster not in rosters:
            return None
        return rosters[cut.roster].serial >= self._least_serial and self.state_after(cut) is not None

    def state_after(self, cut: Cut) -> bytes | None:
        """The state that a cut leads to; None where its segments are not held, or lead elsewhere."""
        bodies = {}
        for peer, count, link in cut.heads:
            found = self.chains.bodies(peer, count, link)
            if found is None:
                return None
            bodies[peer] = found
        state = self._folded(bodies)
        return state if hashlib.sha256(state).digest() == cut.state else None

    def _folded(self, bodies: Mapping[int, Sequence[bytes]]) -> bytes:
        return self._ledger.fold(self.state, self.number, bodies)
