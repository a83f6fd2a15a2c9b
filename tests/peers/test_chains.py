"""The logs of an epoch: what each segment does, and that the order in which they come changes nothing."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import Reason, RefusedError
from fedpeft.keys.signing import digest
from fedpeft.peers.chains import Chains, Taking
from fedpeft.peers.segment import Fork, Segment, beginning
from tests.peers.swarm import RUN, HashLedger, chain, fork, key

ROOT = digest("root")


def fresh() -> Chains:
    return Chains(RUN, 1, ROOT, {n: key(n).public for n in (1, 2, 3)}, 4, HashLedger().check)


def test_a_chain_grows_by_what_follows() -> None:
    chains = fresh()
    one, two, three = chain([b"1", b"2", b"3"], 2, ROOT)
    assert chains.take(two) == Taking.AHEAD
    assert chains.take(one) == Taking.NEW
    assert chains.take(one) == Taking.KNOWN
    assert chains.take(three) == Taking.AHEAD
    assert chains.take(two) == Taking.NEW
    assert chains.count(2) == 2
    assert chains.heads() == {2: (2, chains.last(2))}
    assert chains.segments(2) == [one, two]
    assert chains.segments(2, 2) == [two]
    assert chains.link(2, 0) == beginning(RUN, ROOT, 2)
    assert chains.link(2, 3) is chains.link(9, 0) is None
    assert chains.count(9) == 0
    assert chains.segments(9) == []


def test_two_under_one_number_bar_from_there() -> None:
    chains = fresh()
    mine, theirs = chain([b"1", b"2", b"3"], 2, ROOT), chain([b"1", b"x", b"y"], 2, ROOT)
    for segment in mine:
        chains.take(segment)
    link = chains.last(2)
    assert chains.take(theirs[1]) == Taking.FORKED
    assert chains.forked() == {2: 2}
    assert chains.count(2) == 1
    assert chains.take(mine[1]) == chains.take(theirs[1]) == Taking.BARRED
    assert chains.bodies(2, 3, link) == [b"1", b"2", b"3"], "what was voted for is still to be had"
    assert chains.bodies(2, 1, chains.last(2)) == [b"1"]
    assert chains.bodies(2, 2, link) is chains.bodies(9, 1, link) is chains.bodies(2, 0, chains.link(2, 0)) is None


def test_a_lower_fork_cuts_deeper_and_a_higher_one_says_nothing() -> None:
    chains = fresh()
    low = Fork(beginning(RUN, ROOT, 2), chain([b"1"], 2, ROOT)[0], chain([b"x"], 2, ROOT)[0])
    high = Fork(
        chain([b"1"], 2, ROOT)[0].link(RUN, beginning(RUN, ROOT, 2)),
        chain([b"1", b"2"], 2, ROOT)[1],
        chain([b"1", b"y"], 2, ROOT)[1],
    )
    assert chains.bar(high)
    assert not chains.bar(high)
    assert chains.take(chain([b"1"], 2, ROOT)[0]) == Taking.NEW
    assert chains.bar(low)
    assert chains.forked() == {2: 1}
    assert chains.count(2) == 0
    assert not chains.bar(high)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": 2}, Reason.OTHER_ROUND),
        ({"peer": 9}, Reason.POLICY),
        ({"number": 0}, Reason.POLICY),
        ({"number": 5}, Reason.POLICY),
        ({"body": b""}, Reason.BAD_PAYLOAD),
        ({"body": b"!"}, Reason.BAD_PAYLOAD),
        ({"body": bytes(33)}, Reason.BAD_PAYLOAD),
        ({"body": b"forged"}, Reason.BAD_PAYLOAD),
        ({"signature": b""}, Reason.BAD_PAYLOAD),
        ({"peer": 3}, Reason.BAD_PAYLOAD),
    ],
)
def test_what_is_not_right_changes_nothing(change: dict[str, object], reason: Reason) -> None:
    chains = fresh()
    before = chains.digest()
    with pytest.raises(RefusedError) as caught:
        chains.take(replace(chain([b"1"], 2, ROOT)[0], **change))
    assert caught.value.reason == reason
    assert chains.digest() == before


def test_a_proof_is_held_to_the_limits_too() -> None:
    chains, start = fresh(), beginning(RUN, ROOT, 2)
    for number, body in ((1, bytes(40)), (1, b"!"), (0, b"b"), (5, b"b")):
        pair = [Segment(1, 2, number, each).signed(RUN, start, key(2)) for each in (b"a", body)]
        with pytest.raises(RefusedError):
            chains.bar(Fork(start, *pair))
    assert not chains.forks


def test_a_proof_of_an_epoch_before_bars_from_the_beginning() -> None:
    chains = Chains(RUN, 2, ROOT, {2: key(2).public}, 4, HashLedger().check)
    for segment in chain([b"1", b"2"], 2, ROOT, epoch=2):
        chains.take(segment)
    proof = fork(2, digest("the root before"))
    assert chains.bar(proof)
    assert (chains.forked(), chains.count(2)) == ({2: 0}, 0)
    assert chains.take(chain([b"1"], 2, ROOT, epoch=2)[0]) == Taking.BARRED
    assert not chains.bar(fork(2, ROOT, epoch=2)), "it cannot be lower"
    with pytest.raises(RefusedError):
        fresh().bar(fork(2, ROOT, epoch=2))


# Any honest and dishonest segments, in any order, again and again: the end is the same.
BRANCHES = [
    *chain([b"1", b"2", b"3", b"4"], 1, ROOT),
    *chain([b"1", b"2", b"3", b"4"], 2, ROOT),
    *chain([b"1", b"2", b"x", b"y"], 2, ROOT)[2:],
    *chain([b"1", b"z", b"3"], 2, ROOT)[1:],
    *chain([b"1", b"2"], 3, ROOT),
    *chain([b"1", b"q", b"r"], 3, ROOT)[1:],
]


def _all_forks() -> list[Fork]:
    start = beginning(RUN, ROOT, 2)
    first = chain([b"1"], 2, ROOT)[0].link(RUN, start)
    second = chain([b"1", b"2"], 2, ROOT)[1].link(RUN, first)
    by_link = {first: [s for s in BRANCHES if s.peer == 2 and s.number == 2]}
    by_link[second] = [s for s in BRANCHES if s.peer == 2 and s.number == 3 and s.body in (b"3", b"x")][:2]
    return [Fork(link, *pair) for link, pair in by_link.items()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_changes_nothing(data: st.DataObject) -> None:
    pieces: list[Segment | Fork] = [*BRANCHES, *_all_forks()]
    chains = fresh()
    for piece in data.draw(st.lists(st.sampled_from(pieces), max_size=40)):
        _give(chains, piece)
    for _ in range(5):
        for piece in data.draw(st.permutations(pieces)):
            _give(chains, piece)
    assert chains.forked() == {2: 2, 3: 2}
    assert {peer: count for peer, (count, _) in chains.heads().items()} == {1: 4, 2: 1, 3: 1}
    other = fresh()
    for _ in range(5):
        for piece in pieces:
            _give(other, piece)
    assert other.digest() == chains.digest()


def _give(chains: Chains, piece: Segment | Fork) -> None:
    try:
        if isinstance(piece, Fork):
            chains.bar(piece)
        else:
            chains.take(piece)
    except RefusedError:
        return


def test_a_digest_tells_epochs_runs_heads_and_forks_apart() -> None:
    made = [fresh()]
    made.append(Chains(RUN, 2, ROOT, {1: key(1).public}, 4, HashLedger().check))
    made.append(Chains(RUN, 1, RUN, {1: key(1).public}, 4, HashLedger().check))
    made.append(Chains(ROOT, 1, ROOT, {1: key(1).public}, 4, HashLedger().check))
    made.append(fresh())
    made[-1].take(chain([b"1"], 2, ROOT)[0])
    made.append(fresh())
    made[-1].take(chain([b"1"], 2, ROOT)[0])
    made[-1].take(chain([b"2"], 2, ROOT)[0])
    assert len({chains.digest() for chains in made}) == len(made)
