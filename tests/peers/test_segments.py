"""Segments and forks: what is signed, and what proves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import peer_pb2 as pb
from fedpeft.keys.signing import digest, verified
from fedpeft.peers.segment import Fork, Segment, beginning
from tests.peers.swarm import RUN, chain, fork, key

ROOT = digest("root")
SEGMENT = Segment(epoch=1, peer=2, number=3, body=b"body")
OTHERS = {"epoch": 4, "peer": 5, "number": 6, "body": b"bodz"}


@pytest.mark.parametrize("field", OTHERS)
def test_a_link_is_of_each_field(field: str) -> None:
    other = replace(SEGMENT, **{field: OTHERS[field]})
    assert other.link(RUN, ROOT) != SEGMENT.link(RUN, ROOT)


def test_a_link_is_of_the_run_and_of_what_went_before_and_not_of_the_signature() -> None:
    link = SEGMENT.link(RUN, ROOT)
    assert link != SEGMENT.link(ROOT, ROOT)
    assert link != SEGMENT.link(RUN, RUN)
    assert link == replace(SEGMENT, signature=b"any").link(RUN, ROOT)


def test_chains_begin_apart() -> None:
    assert len({beginning(*place) for place in [(RUN, ROOT, 1), (RUN, ROOT, 2), (RUN, RUN, 1), (ROOT, ROOT, 1)]}) == 4


def test_a_segment_is_signed_by_its_member() -> None:
    signed = SEGMENT.signed(RUN, ROOT, key(2))
    assert verified(key(2).public, signed.link(RUN, ROOT), signed.signature)
    assert Segment.from_proto(pb.Segment.FromString(signed.to_proto().SerializeToString())) == signed


def test_two_segments_under_one_number_prove() -> None:
    proof = fork(3, ROOT, [b"same"])
    assert proof.place == (1, 3, 2)
    assert proof.proves(RUN, key(3).public)
    assert not proof.proves(RUN, key(2).public)
    assert not proof.proves(ROOT, key(3).public)
    assert Fork.from_proto(pb.Fork.FromString(proof.to_proto().SerializeToString())).proves(RUN, key(3).public)


def test_nothing_less_proves() -> None:
    proof = fork(3, ROOT, [b"same"])
    one, two = chain([b"same", b"one"], 3, ROOT)
    forged = replace(proof.second, signature=key(1).sign(proof.second.link(RUN, proof.previous)))
    for wrong in (
        replace(proof, second=proof.first),
        replace(proof, first=one),
        replace(proof, second=two),
        replace(proof, second=forged),
        replace(proof, previous=ROOT),
        replace(proof, second=replace(proof.second, number=3)),
    ):
        assert not wrong.proves(RUN, key(3).public)


def test_what_went_before_a_fork_is_a_hash_and_no_load() -> None:
    previous = bytes(1 << 20)
    first, second = (Segment(1, 3, 1, body).signed(RUN, previous, key(3)) for body in (b"one", b"other"))
    assert not Fork(previous, first, second).proves(RUN, key(3).public)


@given(st.binary(max_size=400), st.integers(0, 4000))
def test_no_bytes_make_a_proof(data: bytes, bit: int) -> None:
    good = bytearray(fork(3, ROOT).to_proto().SerializeToString())
    bit %= 8 * len(good)
    good[bit // 8] ^= 1 << bit % 8
    for raw in (data, bytes(good)):
        try:
            message = pb.Fork.FromString(raw)
        except Exception:
            continue
        read = Fork.from_proto(message)
        assert not read.proves(RUN, key(3).public) or read == fork(3, ROOT)
