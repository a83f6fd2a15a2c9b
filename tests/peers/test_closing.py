"""Closing an epoch: nobody decides two things, and in the end somebody decides."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.peers.closing import MOST_VIEWS, Closing, Decision
from fedpeft.peers.cut import Cut, Kind, Proposal, Vote, quorum

Word = Vote | Proposal
PATIENCE_S = 1.0
EPOCH = 1


@cache
def cut(name: str) -> Cut:
    """Some cut; no honest member finds one right whose name begins with "bad"."""
    return Cut(b"run", EPOCH, bytes(32), (), (), bytes(32), name.encode().ljust(32))


@dataclass
class Honest:
    """A member that follows the rules, with a disk."""

    me: int
    members: tuple[int, ...]
    disk: list[Word] = field(default_factory=list)
    lasting: int = 0
    said: dict[tuple[int, Kind], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.closing = Closing(EPOCH, self.members, self.me, PATIENCE_S)

    def hear(self, word: Word) -> None:
        if self.closing.add(word):
            self.disk.append(word)

    def speak(self, now: float) -> list[Word]:
        words: list[Word] = []
        while (word := self.closing.say(now, True, self._propose, self._judge)) is not None:
            if isinstance(word, Vote):
                assert self.said.setdefault((word.view, word.kind), word.cut) == word.cut, "it contradicts itself"
            assert self.closing.add(word)
            self.disk.append(word)
            self.lasting = len(self.disk)
            words.append(word)
            assert len(words) < 8
        return words

    def crash(self) -> None:
        """Lose all but what was durable: own words, and what was written before them."""
        del self.disk[self.lasting :]
        self.closing = Closing(EPOCH, self.members, self.me, PATIENCE_S)
        for word in self.disk:
            self.closing.add(word)

    def give(self, other: "Honest") -> None:
        """What `exchange` gives to somebody of whom it knows who voted, and the last view in which enough did."""
        mine, theirs = self.closing, other.closing
        words: list[Word] = [*mine.evidence(theirs.valid()[0])]
        for place, cast in mine.votes.items():
            words += [vote for peer, vote in cast.items() if peer not in theirs.votes.get(place, {})]
        words += [proposal for view, proposal in mine.proposals.items() if view not in theirs.proposals]
        for word in words:
            other.hear(word)

    def _propose(self) -> Cut:
        return cut(f"of {self.me} in {self.closing.view}")

    def _judge(self, given: Cut) -> bool | None:
        return not given.state.startswith(b"bad")


@dataclass
class Assembly:
    """Members of whom fewer than a third lie, and an adversary who has them and the network."""

    size: int
    seed: int

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        members = tuple(range(1, self.size + 1))
        self.liars = self.random.sample(members, (self.size - 1) // 3)
        self.honest = [Honest(me, members) for me in members if me not in self.liars]
        self.now = 0.0
        self.pool: list[Word] = []
        self.decisions: dict[int, Decision] = {}

    def lie(self) -> None:
        """Tell one honest member something of a liar: any proposal, any vote, none of which another need ever see."""
        view = max(0, self.random.choice(self.honest).closing.view + self.random.choice([0, 0, 0, 1, -1]))
        known = [p.cut for h in self.honest for p in h.closing.proposals.values()] + [cut("bad"), cut("of a liar")]
        chosen, to, liar = self.random.choice(known), self.random.choice(self.honest), self.random.choice(self.liars)
        if to.closing.proposer(view) in self.liars and self.random.random() < 0.5:
            to.hear(Proposal(view, self.random.randrange(-1, max(view, 0)), chosen))
        else:
            named = self.random.choice([chosen.hash, chosen.hash, b""])
            to.hear(Vote(EPOCH, view, self.random.choice(list(Kind)), liar, named))

    def speak(self, who: Iterable[Honest]) -> None:
        for member in who:
            self.pool += member.speak(self.now)
            decision = member.closing.decision()
            if decision is not None:
                self.decisions.setdefault(member.me, decision)
        assert len({decision.cut for decision in self.decisions.values()}) <= 1, "two cuts were decided"
        assert not any(decision.cut.state.startswith(b"bad") for decision in self.decisions.values())

    def storm(self, steps: int) -> None:
        """Anything may happen: words come late, never, out of order; members crash; liars lie."""
        for _ in range(steps):
            what, member = self.random.random(), self.random.choice(self.honest)
            if what < 0.35 and self.pool:
                member.hear(self.random.choice(self.pool[-12:]))
            elif what < 0.5:
                self.random.choice(self.honest).give(member)
            elif what < 0.6 and self.liars:
                self.lie()
            elif what < 0.64:
                member.crash()
            elif what < 0.75:
                self.now += self.random.choice([0.1, 1.0, 3.0])
            self.speak([member])

    def calm(self, rounds: int) -> bool:
        """All honest members hear from each other in time, though liars go on; whether somebody decided."""
        for _ in range(rounds):
            for _ in range(4):
                for _ in range(self.random.randrange(3) if self.liars else 0):
                    self.lie()
                self.speak(self.honest)
                if self.decisions:
                    return True
                for giver, taker in permutations(self.honest, 2):
                    giver.give(taker)
            self.now += 0.5 * PATIENCE_S
        return False


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1 << 32))
def test_nobody_decides_otherwise_and_in_the_end_it_is_decided(size: int, seed: int) -> None:
    assembly = Assembly(size, seed)
    assembly.storm(assembly.random.choice([0, 40, 150]))
    assert assembly.calm(2000), [(h.me, h.closing.view) for h in assembly.honest]
    assembly.storm(60)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(st.integers(4, 7), st.integers(0, 1 << 32))
def test_it_is_decided_whatever_the_storm(size: int, seed: int) -> None:
    assembly = Assembly(size, seed)
    assembly.storm(600)
    assert assembly.calm(3000), [(h.me, h.closing.view) for h in assembly.honest]
    assembly.storm(200)


def test_in_good_weather_one_view_decides() -> None:
    for size in range(1, 8):
        members = tuple(range(1, size + 1))
        honest = [Honest(me, members) for me in members]
        for _ in range(4):
            for member in honest:
                member.speak(0.0)
            for giver, taker in permutations(honest, 2):
                giver.give(taker)
        assert {h.closing.decision().view for h in honest} == {0}  # type: ignore[union-attr]
        assert {h.closing.decision().cut for h in honest} == {cut(f"of {members[1 % size]} in 0")}  # type: ignore[union-attr]


def _votes(view: int, named: Cut, *peers: int) -> list[Vote]:
    return [Vote(EPOCH, view, Kind.FOR, peer, named.hash) for peer in peers]


def _heard(member: Honest, *words: Word) -> dict[tuple[int, Kind], bytes]:
    """What a member has said once it heard something, without any time passing."""
    for word in words:
        member.hear(word)
    member.speak(0.0)
    return member.said


def _locked() -> Honest:
    """Member 4, which has voted to close with cut "a" in the first view."""
    member = Honest(4, (1, 2, 3, 4))
    said = _heard(member, Proposal(0, -1, cut("a")), *_votes(0, cut("a"), 1, 2))
    assert said == {(0, Kind.FOR): cut("a").hash, (0, Kind.CLOSE): cut("a").hash}
    return member


def test_who_is_locked_votes_for_nothing_new_and_not_for_less() -> None:
    member = _locked()
    assert _heard(member, Proposal(1, -1, cut("b")), *_votes(1, cut("b"), 1, 2))[1, Kind.FOR] == b""
    assert _heard(member, *_votes(1, cut("b"), 3))[1, Kind.CLOSE] == cut("b").hash, "enough others voted for it"
    assert _heard(member, Proposal(3, 0, cut("a")), *_votes(3, cut("a"), 1, 2))[3, Kind.FOR] == b"", "it is older"
    assert _heard(member, Proposal(4, 1, cut("b")), *_votes(4, cut("b"), 1, 2))[4, Kind.FOR] == cut("b").hash


def test_a_lock_gives_way_to_a_later_majority_that_is_shown() -> None:
    member = _locked()
    said = _heard(member, Proposal(3, 1, cut("b")), *_votes(3, cut("b"), 1, 2), *_votes(1, cut("b"), 1, 2))
    assert (3, Kind.FOR) not in said, "not shown yet"
    assert _heard(member, *_votes(1, cut("b"), 3))[3, Kind.FOR] == cut("b").hash


def test_who_votes_for_two_cuts_cannot_hide_a_majority() -> None:
    """Member 1 makes member 2 lock a cut, and tells the others that it voted for none."""
    two, three, four = (Honest(me, (1, 2, 3, 4)) for me in (2, 3, 4))
    proposal = two.speak(0.0)[0]
    assert isinstance(proposal, Proposal)
    named = proposal.cut.hash
    three.hear(proposal)
    three.speak(0.0)
    for now in (0.0, PATIENCE_S):
        four.speak(now)
    four.hear(proposal)
    assert four.said == {(0, Kind.FOR): b""}
    two.hear(Vote(EPOCH, 0, Kind.FOR, 1, named))
    for other in (three, four):
        other.hear(Vote(EPOCH, 0, Kind.FOR, 1, b""))
    three.give(two)
    two.speak(PATIENCE_S)
    assert two.said[0, Kind.CLOSE] == named
    three.give(four)
    assert four.closing.valid() == (-1, None)
    two.give(four)
    assert four.closing.valid() == (0, proposal.cut)
    four.give(three)
    assert three.closing.valid() == (0, proposal.cut), "and it can convince others"


def test_of_two_proposals_the_one_that_enough_voted_for_stays() -> None:
    closing = Closing(EPOCH, (1, 2, 3, 4), 1, PATIENCE_S)
    mine, theirs, third = (Proposal(0, -1, cut(name)) for name in ("a", "b", "c"))
    assert closing.add(mine)
    assert not closing.add(theirs)
    for peer in (2, 3, 4):
        assert closing.add(Vote(EPOCH, 0, Kind.FOR, peer, theirs.cut.hash))
    assert closing.add(theirs)
    assert closing.proposals == {0: theirs}
    assert not closing.add(third)
    assert closing.decision() is None
    for peer in (2, 3, 4):
        closing.add(Vote(EPOCH, 0, Kind.CLOSE, peer, theirs.cut.hash))
    assert closing.decision() == Decision(theirs.cut, 0)


def test_what_is_kept_is_bounded() -> None:
    closing = Closing(EPOCH, (1, 2, 3, 4), 1, PATIENCE_S)
    for view in range(3 * MOST_VIEWS):
        for name in ("a", "b", "c", "d"):
            closing.add(Proposal(view, -1, cut(name)))
            for kind in Kind:
                closing.add(Vote(EPOCH, view, kind, 2, cut(name).hash))
    assert closing.view == 0
    assert len(closing.proposals) == MOST_VIEWS + 1
    assert sum(map(len, closing.votes.values())) == 2 * (MOST_VIEWS + 1)
    assert sum(map(len, closing.second.values())) == MOST_VIEWS + 1
    for wrong in (
        Vote(EPOCH, 0, Kind.FOR, 9, b""),
        Vote(EPOCH + 1, 0, Kind.FOR, 3, b""),
        Vote(EPOCH, -1, Kind.FOR, 3, b""),
        Proposal(1, 1, cut("a")),
        Proposal(1, -2, cut("a")),
    ):
        assert not closing.add(wrong)
    assert set(closing.votes) == {(view, kind) for view in range(MOST_VIEWS + 1) for kind in Kind}


def test_who_was_away_for_many_views_follows() -> None:
    closing = Closing(EPOCH, (1, 2, 3, 4), 1, PATIENCE_S)
    words = [Vote(EPOCH, view, kind, peer, b"") for view in range(200) for kind in Kind for peer in (2, 3, 4)]
    for _ in range(4):
        for word in words:
            closing.add(word)
        closing.say(0.0, False, lambda: None, lambda _: None)
    assert closing.view == 199


def test_who_only_watches_says_nothing_and_sees_the_decision() -> None:
    closing = Closing(EPOCH, (1, 2, 3, 4), None, PATIENCE_S)
    proposal = Proposal(0, -1, cut("a"))
    closing.add(proposal)
    for peer in (1, 2, 3):
        for kind in Kind:
            closing.add(Vote(EPOCH, 0, kind, peer, proposal.cut.hash))
        assert closing.say(100.0, True, lambda: cut("b"), lambda _: True) is None
    assert closing.decision() == Decision(proposal.cut, 0)


def test_an_epoch_that_may_not_end_yet_is_not_voted_on() -> None:
    closing = Closing(EPOCH, (1,), 1, PATIENCE_S)
    assert closing.say(0.0, False, lambda: cut("a"), lambda _: True) is None
    assert isinstance(closing.say(0.0, True, lambda: cut("a"), lambda _: True), Proposal)
    assert closing.say(0.0, True, lambda: None, lambda _: True) is None


def test_more_than_two_thirds() -> None:
    for members in range(1, 200):
        assert 3 * quorum(members) > 2 * members >= 3 * (quorum(members) - 1)
    assert all(after - before in (0, 1) for before, after in pairwise(map(quorum, range(1, 200))))
