"""Snapshots: what was decided comes back whole, and nothing else does."""

import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.errors import Defect, IdentityError, PayloadError
from fedpeft.peers.cut import Kind
from fedpeft.peers.snapshot import Snapshot
from tests.peers.swarm import ORGANISER, RUN, closed, key, roster

FOUR, FIVE = roster([1, 2, 3, 4]), roster([1, 2, 3, 4, 5], serial=2)
STATE = bytes(range(32))
GOOD = closed(FIVE, FOUR, [1, 2, 3], state=STATE)


def read(data: bytes, serial: int = 0, most: int = 32) -> Snapshot:
    return Snapshot.from_bytes(data, RUN, ORGANISER.public, serial, most)


def test_what_was_decided_comes_back() -> None:
    for snapshot in (GOOD, closed(FOUR, FOUR, [2, 3, 4], state=STATE)):
        got = read(snapshot.to_bytes())
        assert (got.certificate, got.roster, got.next, got.state) == (
            snapshot.certificate,
            snapshot.roster,
            snapshot.next,
            snapshot.state,
        )
        assert got.to_bytes() == snapshot.to_bytes()


def test_no_snapshot_is_believed_that_was_cut_off() -> None:
    data = GOOD.to_bytes()
    for end in range(len(data)):
        with pytest.raises((PayloadError, IdentityError)):
            read(data[:end])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * len(GOOD.to_bytes()) - 1))
def test_no_bit_can_be_turned_to_any_effect(bit: int) -> None:
    data = bytearray(GOOD.to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    try:
        got = read(bytes(data))
    except (PayloadError, IdentityError):
        return
    assert (got.cut, got.state, got.next) == (GOOD.cut, GOOD.state, GOOD.next)


@given(st.binary(max_size=500))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((PayloadError, IdentityError)):
        read(data)


def test_who_may_have_decided() -> None:
    for wrong in (
        closed(FIVE, FOUR, [1, 2], state=STATE),
        closed(FIVE, FOUR, [1, 2, 5], state=STATE),
        replace(GOOD, next=FOUR),
        replace(GOOD, next=FIVE.signed(key(1))),
        replace(GOOD, roster=replace(FOUR, signature=b"")),
        replace(GOOD, roster=roster([1, 6, 7, 8])),
    ):
        with pytest.raises(IdentityError):
            read(wrong.to_bytes())
    with pytest.raises(IdentityError, match="under roster 2, where 3 is known"):
        read(GOOD.to_bytes(), serial=3)


def test_another_state_is_not_the_one_that_was_voted_for() -> None:
    for state, defect in ((bytes(32), Defect.CHECKSUM), (b"", Defect.CHECKSUM), (bytes(33), Defect.TOO_LARGE)):
        with pytest.raises(PayloadError) as caught:
            read(replace(GOOD, state=state).to_bytes())
        assert caught.value.defect == defect


def test_a_bomb_is_not_inflated() -> None:
    message = GOOD.to_bytes()
    bomb = pb.Snapshot.FromString(message)
    bomb.state = zlib.compress(bytes(1 << 28), 9)
    with pytest.raises(PayloadError, match="does not end within 32 bytes"):
        read(bomb.SerializeToString())
    bomb.state = zlib.compress(STATE) + b"more"
    with pytest.raises(PayloadError, match="does not end within"):
        read(bomb.SerializeToString())
    bomb.state = b"no stream"
    with pytest.raises(PayloadError, match="cannot be inflated"):
        read(bomb.SerializeToString())


def test_votes_are_not_counted_without_end() -> None:
    flood = pb.Snapshot.FromString(GOOD.to_bytes())
    for _ in range(1000):
        flood.votes.add(kind=Kind.CLOSE, peer=1, cut=bytes(32), signature=bytes(64))
    with pytest.raises(PayloadError, match="1003 votes of 4"):
        read(flood.SerializeToString())


def test_a_snapshot_beyond_all_bounds_is_not_even_read() -> None:
    with pytest.raises(PayloadError) as caught:
        read(bytes(1 << 28))
    assert caught.value.defect == Defect.TOO_LARGE
