"""Cuts, votes, proposals, certificates and rosters: what each hash is of, and that any bytes may come."""

from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import IdentityError, PayloadError
from fedpeft.keys.signing import digest, verified
from fedpeft.peers.cut import Certificate, Cut, Kind, Proposal, Vote
from fedpeft.peers.roster import Member, Roster
from tests.peers.swarm import ORGANISER, RUN, decided, key, roster, terms

H = [digest("hash", bytes([i])) for i in range(6)]
CUT = Cut(RUN, 3, H[0], ((1, 2, H[1]), (4, 1, H[2])), (2, 3), H[3], H[4])
OTHER_CUTS = {
    "run": H[0],
    "epoch": 4,
    "before": H[5],
    "heads": ((1, 2, H[1]),),
    "barred": (2,),
    "roster": H[5],
    "state": H[5],
}
VOTE = Vote(3, 1, Kind.FOR, 2, CUT.hash)
OTHER_VOTES = {"epoch": 4, "view": 2, "kind": Kind.CLOSE, "peer": 3, "cut": b""}


def test_a_cut_is_hashed_whole() -> None:
    others = [replace(CUT, **{name: value}) for name, value in OTHER_CUTS.items()]
    others += [replace(CUT, heads=((1, 2, H[1]), (4, 2, H[2]))), replace(CUT, heads=((1, 2, H[1]), (4, 1, H[1])))]
    others += [replace(CUT, heads=((1, 2, H[1]), (5, 1, H[2])))]
    assert len({cut.hash for cut in [CUT, *others]}) == len(others) + 1


def test_votes_and_proposals_are_hashed_whole() -> None:
    votes = [VOTE, *(replace(VOTE, **{name: value}) for name, value in OTHER_VOTES.items())]
    assert len({vote.hash(RUN) for vote in votes} | {VOTE.hash(H[0])}) == len(votes) + 1
    proposals = [
        Proposal(1, -1, CUT),
        Proposal(2, -1, CUT),
        Proposal(1, 0, CUT),
        Proposal(1, -1, replace(CUT, epoch=4)),
    ]
    assert len({proposal.hash() for proposal in proposals}) == len(proposals)


def test_messages_bring_back_what_was_put_in() -> None:
    signed, proposal = VOTE.signed(RUN, key(2)), Proposal(2, 1, CUT).signed(key(2))
    assert Cut.from_proto(pb.Cut.FromString(CUT.to_proto().SerializeToString()), RUN) == CUT
    assert Vote.from_proto(pb.Vote.FromString(signed.to_proto().SerializeToString())) == signed
    assert Proposal.from_proto(pb.Proposal.FromString(proposal.to_proto().SerializeToString()), RUN) == proposal
    assert verified(key(2).public, signed.hash(RUN), signed.signature)
    assert verified(key(2).public, proposal.hash(), proposal.signature)


@pytest.mark.parametrize(
    "change",
    [
        {"before": b"short"},
        {"state": b""},
        {"roster": bytes(33)},
        {"heads": ((4, 1, H[1]), (1, 2, H[2]))},
        {"heads": ((1, 1, H[1]), (1, 1, H[1]))},
        {"heads": ((1, 0, H[1]),)},
        {"heads": ((1, 1, b""),)},
        {"barred": (3, 2)},
        {"barred": (2, 2)},
    ],
)
def test_a_cut_has_one_form(change: dict[str, object]) -> None:
    with pytest.raises(PayloadError):
        Cut.from_proto(replace(CUT, **change).to_proto(), RUN)


@pytest.mark.parametrize("message", [pb.Vote(kind=0), pb.Vote(kind=3), pb.Vote(kind=1, cut=b"short")])
def test_what_is_no_vote(message: pb.Vote) -> None:
    with pytest.raises(PayloadError):
        Vote.from_proto(message)


BYTES = st.binary(max_size=300) | st.builds(
    lambda data, bit, drop: _bent(data, bit, drop),
    st.sampled_from(
        [
            CUT.to_proto().SerializeToString(),
            VOTE.signed(RUN, key(2)).to_proto().SerializeToString(),
            Proposal(2, 1, CUT).signed(key(2)).to_proto().SerializeToString(),
            roster([1, 2]).to_proto().SerializeToString(),
        ]
    ),
    st.integers(0, 1 << 14),
    st.integers(0, 40),
)


def _bent(data: bytes, bit: int, drop: int) -> bytes:
    bent = bytearray(data)
    bent[bit // 8 % len(bent)] ^= 1 << bit % 8
    return bytes(bent[: len(bent) - drop])


@given(BYTES)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for kind, read in (
        (pb.Cut, lambda message: Cut.from_proto(message, RUN).hash),
        (pb.Vote, lambda message: Vote.from_proto(message).hash(RUN)),
        (pb.Proposal, lambda message: Proposal.from_proto(message, RUN).hash()),
        (pb.Roster, lambda message: Roster.from_proto(message, RUN).check(ORGANISER.public)),
    ):
        try:
            message = kind.FromString(data)
        except DecodeError:
            continue
        try:
            read(message)
        except (PayloadError, IdentityError):
            continue


def test_a_certificate_needs_more_than_two_thirds_of_those_who_may_vote() -> None:
    four = roster([1, 2, 3, 4])
    assert decided(CUT, [1, 2, 4]).check(four).cut == CUT
    for certificate in (
        decided(CUT, [1, 2]),
        decided(CUT, [1, 2, 9]),
        decided(CUT, [1, 2, 2]),
        Certificate(replace(CUT, epoch=4), 0, decided(CUT, [1, 2, 3]).votes),
        Certificate(CUT, 1, decided(CUT, [1, 2, 3]).votes),
        Certificate(CUT, 0, tuple(replace(vote, kind=Kind.FOR) for vote in decided(CUT, [1, 2, 3]).votes)),
        Certificate(CUT, 0, tuple(replace(vote, peer=vote.peer + 1) for vote in decided(CUT, [1, 2, 3]).votes)),
    ):
        with pytest.raises(IdentityError, match="of 4 members signed it, expected at least 3"):
            certificate.check(four)


def test_a_roster_is_hashed_whole_and_signed_by_the_organiser() -> None:
    one = Member(1, "a", key(1).public, b"certificate", ("host:1",))
    changed = [
        replace(one, number=2),
        replace(one, name="b"),
        replace(one, key=key(2).public),
        replace(one, certificate=b""),
        replace(one, addresses=()),
    ]
    rosters = [Roster(RUN, 1, (one,)), Roster(RUN, 2, (one,)), Roster(H[0], 1, (one,))]
    rosters += [Roster(RUN, 1, (member,)) for member in changed]
    assert len({each.hash for each in rosters}) == len(rosters)
    for signer in (key(1), key(2)):
        with pytest.raises(IdentityError, match="not the organiser's"):
            rosters[0].signed(signer).check(ORGANISER.public)
    assert rosters[0].next([one]).serial == 2
    assert len({terms().root(each.hash) for each in rosters}) == len(rosters)


@pytest.mark.parametrize(
    "members",
    [
        (),
        (Member(0, "a", bytes(32)),),
        (Member(2, "a", bytes(32)), Member(1, "b", bytes(31) + b"b")),
        (Member(1, "a", bytes(32)), Member(1, "b", bytes(31) + b"b")),
        (Member(1, "a", bytes(32)), Member(2, "b", bytes(32))),
        (Member(1, "a", bytes(31)),),
        (Member(1, "a" * 64, bytes(32)),),
        (Member(1, "a", bytes(32), bytes(1 << 15)),),
    ],
)
def test_a_roster_that_is_none(members: tuple[Member, ...]) -> None:
    with pytest.raises(ValueError, match="expected|one key|longer"):
        Roster(RUN, 1, members)
    message = pb.Roster(serial=1, members=[member.to_proto() for member in members])
    with pytest.raises(IdentityError, match="roster 1"):
        Roster.from_proto(message, RUN)
