"""Peers in any weather: whatever happened, they end with one state, cheats are proven, and no honest peer is barred."""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedpeft._proto import peer_pb2 as pb
from fedpeft.peers.cut import Kind, Proposal, Vote, quorum
from fedpeft.peers.peer import Peer
from fedpeft.peers.store import MemoryStore
from fedpeft.runtime.simulated.network import Weather
from tests.peers.swarm import RUN, HashLedger, Swarm, chain, key, roster

WEATHERS = [
    Weather(),
    Weather(loss=0.3),
    Weather(loss=0.3, repeat=0.3, damage=0.1),
    Weather(damage=0.5),
    Weather(loss=0.1, delay=0.4),
]
WHO = st.integers(0, 1 << 16)


class Storm(RuleBasedStateMachine):
    """Members of whom one may be a liar: a key that signs whatever it likes, and shows each something else."""

    @initialize(size=st.integers(4, 6), lying=st.booleans(), met=st.booleans(), seed=WHO)
    def begin(self, size: int, lying: bool, met: bool, seed: int) -> None:
        self.liar = size if lying else 0
        self.swarm = Swarm(size, seed=seed, liars=(size,) if lying else ())
        self.roots: dict[int, bytes] = {1: self.swarm.terms.root(self.swarm.roster.hash)}
        self.backups: dict[int, MemoryStore] = {}
        self.newcomers: set[int] = set()
        self.rosters = [self.swarm.roster]
        if met:
            self.swarm.all_exchange()

    def some(self, who: int) -> int:
        return sorted(self.swarm.peers)[who % len(self.swarm.peers)]

    def liars_place(self, peer: Peer) -> bool:
        return self.liar in peer.chains.keys

    # What honest peers do

    @rule(who=WHO)
    def publish(self, who: int) -> None:
        self.swarm.publish(self.some(who))

    @rule(who=WHO, other=WHO)
    def exchange(self, who: int, other: int) -> None:
        caller, callee = self.some(who), self.some(other)
        if caller != callee:
            self.swarm.exchange(caller, callee)

    @rule(seed=WHO, rounds=st.integers(1, 12), seconds=st.sampled_from([5.0, 1.0, 0.0]))
    def live(self, seed: int, rounds: int, seconds: float) -> None:
        """As peers do: each publishes, talks to somebody, and says what there is to say, in no order."""
        random = Random(seed)
        for _ in range(rounds):
            numbers = sorted(self.swarm.peers)
            for number in random.sample(numbers, len(numbers)):
                if random.random() < 0.5:
                    self.swarm.publish(number)
                for other in random.sample([n for n in numbers if n != number], 2):
                    self.swarm.exchange(number, other)
                self.swarm.advance(seconds * random.random(), [number])

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.swarm.advance(seconds)

    # What befalls them

    @rule(weather=st.sampled_from(WEATHERS))
    def weather(self, weather: Weather) -> None:
        self.swarm.network.weather = weather

    @rule(side=st.integers(0, 255))
    def split(self, side: int) -> None:
        numbers = sorted(self.swarm.peers)
        self.swarm.network.split([[n for n in numbers if side >> n & 1], [n for n in numbers if not side >> n & 1]])

    @rule()
    def heal(self) -> None:
        self.swarm.network.heal()

    @rule(who=WHO, publishing=st.booleans())
    def crash(self, who: int, publishing: bool) -> None:
        """Also after a segment was made durable, and before anybody saw it."""
        number = self.some(who)
        if publishing:
            self.swarm.publish(number)
        self.swarm.start(number, self.swarm.stores[number].crashed(), roster=self.rosters[-1])

    @rule(who=WHO)
    def back_up(self, who: int) -> None:
        self.backups[self.some(who)] = deepcopy(self.swarm.stores[self.some(who)])

    @precondition(lambda self: not self.liar and self.backups)
    @rule(who=WHO)
    def restore(self, who: int) -> None:
        """One at a time: with two that must be silent, too few are left to close an epoch."""
        silent = [p for p in self.swarm.peers.values() if p.epoch <= p._silent]
        number = sorted(self.backups)[who % len(self.backups)]
        if number in self.swarm.peers and not silent and self.enough_without(number):
            self.swarm.start(number, self.backups.pop(number), restored=True, roster=self.rosters[-1])

    def enough_without(self, number: int) -> bool:
        """Whether an epoch could be closed without one, under each roster that is or may come into force."""
        honest = self.swarm.peers.keys() - {number}
        return all(len(honest & known.by_number.keys()) >= quorum(len(known.members)) for known in self.rosters)

    @precondition(lambda self: len(self.rosters) == 1)
    @rule(who=WHO)
    def newcomer(self, who: int) -> None:
        number = self.swarm.size + 1
        self.change([*self.rosters[-1].by_number, number], who)
        self.newcomers.add(number)
        self.swarm.start(number, MemoryStore(), roster=self.rosters[-1])

    @precondition(lambda self: len(self.rosters) == 2)
    @rule(who=WHO)
    def dismissal(self, who: int) -> None:
        """A member is taken off the roster; it goes on watching."""
        gone = self.some(who)
        left = [number for number in self.rosters[-1].by_number if number != gone]
        if len(left) >= 4 and not [p for p in self.swarm.peers.values() if p.epoch <= p._silent]:
            self.change(left, who)

    def change(self, numbers: Sequence[int], who: int) -> None:
        self.rosters.append(roster(numbers, serial=len(self.rosters) + 1))
        self.swarm.peers[self.some(who)].take(pb.Batch(run=RUN, roster=self.rosters[-1].to_proto()))

    # What the liar does

    @precondition(lambda self: self.liar)
    @rule(side=st.integers(0, 255), same=st.integers(0, 2), length=st.integers(1, 3))
    def two_chains(self, side: int, same: int, length: int) -> None:
        for number, peer in self.swarm.peers.items():
            branch = "a" if side >> number & 1 else "b"
            bodies = [f"{'same' if i < same else branch}{i}".encode() for i in range(length)]
            if self.liars_place(peer):
                self.swarm.push(number, chain(bodies, self.liar, peer.root, peer.epoch))

    @precondition(lambda self: self.liar)
    @rule(who=WHO, seed=WHO, count=st.integers(1, 6))
    def votes(self, who: int, seed: int, count: int) -> None:
        random, peer = Random(seed), self.swarm.peers[self.some(who)]
        proposals = [p.cut.hash for other in self.swarm.peers.values() for p in other.closing.proposals.values()]
        for _ in range(count):
            view = max(0, peer.closing.view + random.choice([-1, 0, 0, 1]))
            named = random.choice([*proposals[-4:], b"", bytes(32)])
            vote = Vote(peer.epoch, view, random.choice(list(Kind)), self.liar, named).signed(RUN, key(self.liar))
            peer.take(pb.Batch(run=RUN, epoch=peer.epoch, votes=[vote.to_proto()]))

    @precondition(lambda self: self.liar)
    @rule(who=WHO, like=WHO, left_out=st.integers(0, 3))
    def proposals(self, who: int, like: int, left_out: int) -> None:
        """To each another one, that is right for somebody, but for members whom it may leave out."""
        peer, other = self.swarm.peers[self.some(who)], self.swarm.peers[self.some(like)]
        cut = other._open.propose(other.newest_roster)
        heads = cut.heads[left_out:]
        bodies = {number: other.chains.bodies(number, count, link) or [] for number, count, link in heads}
        state = HashLedger().fold(other.state, other.epoch, bodies)
        cut = replace(cut, heads=heads, state=hashlib.sha256(state).digest())
        proposal = Proposal(peer.closing.view, -1, cut).signed(key(self.liar))
        peer.take(pb.Batch(run=RUN, epoch=peer.epoch, proposals=[proposal.to_proto()]))

    # What holds all the time, and in the end

    @invariant()
    def one_history(self) -> None:
        for number, peer in self.swarm.peers.items():
            assert not {*peer.chains.forks, *peer.barred} - {self.liar}, "an honest peer was barred"
            if peer.epoch > 1 or number not in self.newcomers:
                assert self.roots.setdefault(peer.epoch, peer.root) == peer.root, f"two histories of {peer.epoch}"

    def teardown(self) -> None:
        if not hasattr(self, "swarm"):
            return
        swarm = self.swarm
        swarm.network.weather = Weather()
        swarm.network.heal()
        newest = max(peer.epoch for peer in swarm.peers.values())
        caught = self.contradicted(newest)
        swarm.all_exchange()
        swarm.all_exchange()
        if caught:
            assert all(
                self.liar in peer.chains.forks for peer in swarm.peers.values() if peer.root == self.roots[newest]
            )
        for _ in range(300):
            swarm.advance(2.0)
            swarm.all_exchange()
            if all(peer.epoch > newest + 1 for peer in swarm.peers.values()):
                break
        swarm.all_exchange()
        self.one_history()
        assert swarm.same(), {n: (p.epoch, p.closing.view, p.may_speak()) for n, p in swarm.peers.items()}
        assert swarm.peers[1].epoch > newest + 1, {n: (p.epoch, p._silent) for n, p in swarm.peers.items()}
        if caught:
            assert all(self.liar in p.barred or self.liar not in p.roster.by_number for p in swarm.peers.values())
        voices = [p for n, p in swarm.peers.items() if n in p.roster.by_number and p.epoch > p._silent]
        assert all(peer.may_speak() for peer in voices)

    def contradicted(self, epoch: int) -> bool:
        """Whether somebody holds one segment of the liar and somebody another, under one number."""
        held = [peer.chains for peer in self.swarm.peers.values() if peer.epoch == epoch and self.liars_place(peer)]
        held = [chains for chains in held if chains.root == self.roots.get(epoch)]
        if any(self.liar in chains.forks for chains in held):
            return True
        links = {(number, chains.link(self.liar, number)) for chains in held for number in range(1, 4)}
        links = {(number, link) for number, link in links if link is not None}
        return len({number for number, _ in links}) < len(links)


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_a_storm() -> None:
    run_state_machine_as_test(
        Storm, settings=settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=CHECKS)
    )


@pytest.mark.slow
def test_a_long_storm() -> None:
    run_state_machine_as_test(
        Storm, settings=settings(max_examples=150, stateful_step_count=150, deadline=None, suppress_health_check=CHECKS)
    )
