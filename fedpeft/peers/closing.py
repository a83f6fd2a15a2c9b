"""How an epoch is closed: Tendermint, one decision an epoch, over votes that are gossiped like anything else.

Buchman, Kwon and Milosevic, "The latest gossip on BFT consensus", 2018, arXiv 1807.04938, Algorithm 1. Safe whatever
the network does while fewer than a third of the members lie; it decides once messages come in time. What a member has
locked is not kept beside its votes but read from them, so whoever has its own votes on disk goes on after a crash as
if nothing had been.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fedpeft.peers.cut import Cut, Kind, Proposal, Vote, quorum

MOST_VIEWS = 64  # beyond its own that a member keeps votes of

Judge: TypeAlias = Callable[[Cut], bool | None]


@dataclass(frozen=True)
class Decision:
    """The cut that closes the epoch, and the view whose votes say so."""

    cut: Cut
    view: int


class Closing:
    """The closing of one epoch, as one member sees it.

    Args:
        epoch: from 1.
        members: numbers of those who may vote, rising.
        me: own number; None for who only watches.
        patience_s: seconds that the first view waits for what it lacks; view v waits 1 + v times as long.
    """

    def __init__(self, epoch: int, members: Sequence[int], me: int | None, patience_s: float) -> None:
        self.epoch, self.members, self.me = epoch, tuple(members), me if me in members else None
        self.proposals: dict[int, Proposal] = {}
        self.votes: dict[tuple[int, Kind], dict[int, Vote]] = {}
        self.view = 0
        self._patience_s = patience_s
        self._since: dict[tuple[int, str], float] = {}
        self._enough = quorum(len(members))

    def proposer(self, view: int) -> int:
        """Whose turn it is to propose."""
        return self.members[(self.epoch + view) % len(self.members)]

    def wants(self, view: int) -> bool:
        """Whether messages of a view are kept."""
        return 0 <= view <= self.view + MOST_VIEWS

    def add(self, said: Vote | Proposal) -> bool:
        """Keep what a member said, whose signature is right; whether it is new. Of two that differ, the first stays."""
        if isinstance(said, Proposal):
            if said.view in self.proposals or not self.wants(said.view):
                return False
            self.proposals[said.view] = said
        else:
            held = self.votes.setdefault((said.view, said.kind), {})
            if said.peer in held or said.peer not in self.members or not self.wants(said.view):
                return False
            held[said.peer] = said
        if self.me is not None and self.me in self.votes.get((said.view, Kind.FOR), {}):
            self.view = max(self.view, said.view)
        return True

    def decision(self) -> Decision | None:
        """What has been decided, as far as the votes here tell."""
        cuts = {proposal.cut.hash: proposal.cut for proposal in self.proposals.values()}
        for view, kind in self.votes:
            for cut in cuts.values():
                if kind == Kind.CLOSE and self._count(view, kind, cut.hash) >= self._enough:
                    return Decision(cut, view)
        return None

    def say(self, now: float, ready: bool, propose: Callable[[], Cut | None], judge: Judge) -> Vote | Proposal | None:
        """What there is to say next, unsigned; None where others must speak first, or time must pass.

        Whoever calls signs it, makes it durable, gives it to `add`, and calls again.

        Args:
            now: seconds, of any clock that only rises.
            ready: whether the epoch may end, as far as this member is concerned.
            propose: the cut that it would close with.
            judge: whether a cut is right; None while that cannot be told.
        """
        self._follow(now)
        if self.me is None or not ready:
            return None
        if not self._said(Kind.FOR):
            return self._vote_for(self.me, now, propose, judge)
        if not self._said(Kind.CLOSE):
            return self._vote_to_close(self.me, now, judge)
        return None

    def _follow(self, now: float) -> None:
        """Enter a later view where others are in it, or where this one has come to nothing."""
        for view in sorted({view for view, _ in self.votes if view > self.view}, reverse=True):
            voters = {peer for kind in Kind for peer in self.votes.get((view, kind), {})}
            if len(voters) > (len(self.members) - 1) // 3:
                self.view = view
        if (
            self._said(Kind.CLOSE)
            and len(self.votes[self.view, Kind.CLOSE]) >= self._enough
            and self._late(now, "close")
        ):
            self.view += 1

    def _vote_for(self, me: int, now: float, propose: Callable[[], Cut | None], judge: Judge) -> Vote | Proposal | None:
        proposal = self.proposals.get(self.view)
        if proposal is None and self.proposer(self.view) == me:
            valid_view, valid = self._valid()
            cut = valid or propose()
            return None if cut is None else Proposal(self.view, valid_view, cut)
        right = None if proposal is None else self._right(proposal, judge)
        if right is None and not self._late(now, "propose"):
            return None
        return self._vote(me, Kind.FOR, proposal.cut.hash if proposal is not None and right else b"")

    def _right(self, proposal: Proposal, judge: Judge) -> bool | None:
        """Whether to vote for a proposal; None while that cannot be told (lines 22 to 33 of the algorithm)."""
        locked_view, locked = self._locked()
        free = locked is None or locked == proposal.cut.hash
        if proposal.valid_view >= 0:
            if proposal.valid_view >= self.view:
                return False
            if self._count(proposal.valid_view, Kind.FOR, proposal.cut.hash) < self._enough:
                return None
            free = free or locked_view <= proposal.valid_view
        return judge(proposal.cut) if free else False

    def _vote_to_close(self, me: int, now: float, judge: Judge) -> Vote | None:
        """Lines 34 to 46."""
        proposal = self.proposals.get(self.view)
        cut = None if proposal is None else proposal.cut
        if cut is not None and self._count(self.view, Kind.FOR, cut.hash) >= self._enough and judge(cut):
            return self._vote(me, Kind.CLOSE, cut.hash)
        if self._count(self.view, Kind.FOR, b"") >= self._enough:
            return self._vote(me, Kind.CLOSE, b"")
        voted = len(self.votes.get((self.view, Kind.FOR), {}))
        return self._vote(me, Kind.CLOSE, b"") if voted >= self._enough and self._late(now, "vote") else None

    def _locked(self) -> tuple[int, bytes | None]:
        """The last view in which this member voted to close with a cut, and that cut's hash."""
        closes = [
            (view, held[self.me].cut)
            for (view, kind), held in self.votes.items()
            if kind == Kind.CLOSE and self.me in held and held[self.me].cut
        ]
        return max(closes, default=(-1, None), key=lambda found: found[0])

    def _valid(self) -> tuple[int, Cut | None]:
        """The last view in which enough voted for a cut, and that cut."""
        cuts = {proposal.cut.hash: proposal.cut for proposal in self.proposals.values()}
        valid = [
            (view, cut)
            for view, kind in self.votes
            for cut in cuts.values()
            if kind == Kind.FOR and view < self.view and self._count(view, kind, cut.hash) >= self._enough
        ]
        return max(valid, default=(-1, None), key=lambda found: found[0])

    def _said(self, kind: Kind) -> bool:
        return self.me in self.votes.get((self.view, kind), {})

    def _count(self, view: int, kind: Kind, cut: bytes) -> int:
        return sum(vote.cut == cut for vote in self.votes.get((view, kind), {}).values())

    def _vote(self, me: int, kind: Kind, cut: bytes) -> Vote:
        return Vote(self.epoch, self.view, kind, me, cut)

    def _late(self, now: float, what: str) -> bool:
        """Whether a wait of this view, which begins when it is first asked for, is over."""
        begun = self._since.setdefault((self.view, what), now)
        return now - begun >= self._patience_s * (1 + self.view)
