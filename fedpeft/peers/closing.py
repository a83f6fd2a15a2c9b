"""How an epoch is closed: Tendermint, one decision an epoch, over votes that spread like anything else.

Buchman, Kwon and Milosevic, "The latest gossip on BFT consensus", 2018, arXiv 1807.04938, Algorithm 1. Safe whatever
the network does while fewer than a third of the members lie; it decides once messages come in time. What a member has
locked is not kept beside its votes but read from them, so whoever has its own votes on disk goes on after a crash as
if nothing had been. Three things differ. A cut is judged once, by who votes for it first: of more than two thirds some
were honest, and what a member learns later of a cheat must not undo what others have locked. Who voted for two cuts
in one view counts for each of them, at all who know of it, so that it cannot show them different majorities. And of
two proposals of one view, the one that the majority voted for stays.
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
        self.second: dict[int, dict[int, Vote]] = {}  # of kind FOR, by view: other votes of who voted twice
        self.view = 0
        self._patience_s = patience_s
        self._since: dict[tuple[int, str], float] = {}
        self._enough = quorum(len(members))

    def proposer(self, view: int) -> int:
        """Whose turn it is to propose."""
        return self.members[(self.epoch + view) % len(self.members)]

    def wants(self, said: Vote | Proposal) -> bool:
        """Whether what a member said would be new here, if its signature is right; it is bounded in all views."""
        if not 0 <= said.view <= self.view + MOST_VIEWS:
            return False
        if isinstance(said, Proposal):
            held = self.proposals.get(said.view)
            return (
                said.cut.epoch == self.epoch
                and -1 <= said.valid_view < said.view
                and (held is None or (held.cut != said.cut and self._many(said.view, said.cut.hash)))
            )
        if said.epoch != self.epoch or said.peer not in self.members:
            return False
        first = self.votes.get((said.view, said.kind), {}).get(said.peer)
        twice = said.kind == Kind.FOR and said.peer != self.me and said.peer not in self.second.get(said.view, {})
        return first is None or (twice and first.cut != said.cut)

    def add(self, said: Vote | Proposal) -> bool:
        """Keep what a member said, whose signature is right; whether it is new."""
        if not self.wants(said):
            return False
        if isinstance(said, Proposal):
            self.proposals[said.view] = said
        elif said.peer in self.votes.setdefault((said.view, said.kind), {}):
            self.second.setdefault(said.view, {})[said.peer] = said
        else:
            self.votes[said.view, said.kind][said.peer] = said
            if said.peer == self.me:
                self.view = max(self.view, said.view)
        return True

    def decision(self) -> Decision | None:
        """What has been decided, as far as the votes here tell."""
        cuts = self._cuts()
        for (view, kind), held in self.votes.items():
            if kind == Kind.CLOSE and len(held) >= self._enough:
                for cut in cuts.values():
                    if self._count(view, kind, cut.hash) >= self._enough:
                        return Decision(cut, view)
        return None

    def valid(self, before: int = 1 << 32) -> tuple[int, Cut | None]:
        """The last view in which enough voted for a cut that is held, and that cut; -1 where there is none."""
        cuts = self._cuts()
        for view in sorted((view for view, kind in self.votes if kind == Kind.FOR and view < before), reverse=True):
            for cut in cuts.values():
                if self._many(view, cut.hash):
                    return view, cut
        return -1, None

    def evidence(self, after: int) -> list[Vote | Proposal]:
        """All that `valid` rests on, where that is a view after another; it convinces whoever gets it."""
        view, cut = self.valid()
        if cut is None or view <= after:
            return []
        votes = [*self.votes[view, Kind.FOR].values(), *self.second.get(view, {}).values()]
        twice = self.second.get(view, {})
        proposal = next(p for p in self.proposals.values() if p.cut == cut)
        return [*(vote for vote in votes if vote.cut == cut.hash or vote.peer in twice), proposal]

    def say(self, now: float, ready: bool, propose: Callable[[], Cut | None], judge: Judge) -> Vote | Proposal | None:
        """What there is to say next, unsigned; None where others must speak first, or time must pass.

        Whoever calls signs it, makes it durable, gives it to `add`, and calls again.

        Args:
            now: seconds, of any clock that only rises.
            ready: whether the epoch may end, as far as this member is concerned.
            propose: the cut that it would close with.
            judge: whether a new cut is right; None while that cannot be told.
        """
        self._follow(now)
        if self.me is None or not ready:
            return None
        if not self._said(Kind.FOR):
            return self._vote_for(self.me, now, propose, judge)
        if not self._said(Kind.CLOSE):
            return self._vote_to_close(self.me, now)
        return None

    def _follow(self, now: float) -> None:
        """Enter a later view where others are in it, or where this one has come to nothing."""
        for view in sorted({view for view, _ in self.votes if view > self.view}, reverse=True):
            voters = {peer for kind in Kind for peer in self.votes.get((view, kind), {})}
            if len(voters) > (len(self.members) - 1) // 3:
                self.view = view
                break
        if len(self.votes.get((self.view, Kind.CLOSE), {})) >= self._enough and self._late(now, "close"):
            self.view += 1

    def _vote_for(self, me: int, now: float, propose: Callable[[], Cut | None], judge: Judge) -> Vote | Proposal | None:
        proposal = self.proposals.get(self.view)
        if proposal is None and self.proposer(self.view) == me:
            valid_view, valid = self.valid(self.view)
            cut = valid or propose()
            return None if cut is None else Proposal(self.view, valid_view, cut)
        right = None if proposal is None else self._right(proposal, judge)
        if right is None and not self._late(now, "propose"):
            return None
        return self._vote(me, Kind.FOR, proposal.cut.hash if proposal is not None and right else b"")

    def _right(self, proposal: Proposal, judge: Judge) -> bool | None:
        """Whether to vote for a proposal; None while that cannot be told (lines 22 to 33 of the algorithm)."""
        locked_view, locked = self._locked()
        if locked == proposal.cut.hash:
            return True
        if proposal.valid_view < 0:
            return judge(proposal.cut) if locked is None else False
        if not self._many(proposal.valid_view, proposal.cut.hash):
            return None
        return locked_view <= proposal.valid_view

    def _vote_to_close(self, me: int, now: float) -> Vote | None:
        """Lines 34 to 46."""
        proposal = self.proposals.get(self.view)
        if proposal is not None and self._many(self.view, proposal.cut.hash):
            return self._vote(me, Kind.CLOSE, proposal.cut.hash)
        if self._many(self.view, b""):
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

    def _cuts(self) -> dict[bytes, Cut]:
        return {proposal.cut.hash: proposal.cut for proposal in self.proposals.values()}

    def _said(self, kind: Kind) -> bool:
        return self.me in self.votes.get((self.view, kind), {})

    def _many(self, view: int, cut: bytes) -> bool:
        """Whether more than two thirds voted for a cut."""
        return self._count(view, Kind.FOR, cut) >= self._enough

    def _count(self, view: int, kind: Kind, cut: bytes) -> int:
        twice = self.second.get(view, {}) if kind == Kind.FOR else {}
        return sum(vote.cut == cut or peer in twice for peer, vote in self.votes.get((view, kind), {}).items())

    def _vote(self, me: int, kind: Kind, cut: bytes) -> Vote:
        return Vote(self.epoch, self.view, kind, me, cut)

    def _late(self, now: float, what: str) -> bool:
        """Whether a wait of this view, which begins when it is first asked for, is over."""
        begun = self._since.setdefault((self.view, what), now)
        return now - begun >= self._patience_s * (1 + self.view)
