"""A reply on the wire: what was joined is split again, and whatever else comes is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import federation_pb2 as pb
from fedpeft.errors import Reason, RefusedError
from fedpeft.federation import Client, ClientStore, messages
from tests.federation import world
from tests.federation.world import SPACE

HEADS = st.builds(
    pb.Reply,
    run=st.binary(max_size=16),
    round=st.integers(0, (1 << 32) - 1),
    update=st.builds(
        pb.Update,
        weight=st.floats(allow_nan=False),
        metrics=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    ),
)


@given(head=HEADS, payload=st.binary(max_size=100))
def test_what_was_joined_is_split_again(head: pb.Reply, payload: bytes) -> None:
    data = messages.join(head, payload)
    for kind in (bytes, bytearray, memoryview):
        again, rest = messages.split(kind(data))
        assert (again, rest) == (head, payload)


def test_the_payload_is_not_copied() -> None:
    data = bytearray(messages.join(pb.Reply(round=1), b"payload"))
    _, payload = messages.split(data)
    data[-1:] = b"D"
    assert payload == b"payloaD"


def test_the_same_reply_gives_the_same_bytes() -> None:
    one, two = ({"b": 1.0, "a": 2.0}, {"a": 2.0, "b": 1.0})
    assert messages.join(pb.Reply(update=pb.Update(metrics=one))) == messages.join(
        pb.Reply(update=pb.Update(metrics=two))
    )


def refused(data: bytes) -> str:
    with pytest.raises(RefusedError) as error:
        messages.split(data)
    assert error.value.reason is Reason.BAD_PAYLOAD
    return error.value.detail


@pytest.mark.parametrize("size", range(4))
def test_less_than_a_length_is_refused(size: int) -> None:
    assert f"it has {size} bytes" in refused(bytes(size))


def test_a_head_that_is_not_there_or_too_long_is_refused_before_it_is_read() -> None:
    assert "a head of 7 bytes, where 6 came and 65536 are allowed" in refused(struct.pack("<I", 7) + bytes(6))
    for length in (messages.LARGEST_HEAD + 1, (1 << 32) - 1):
        assert f"a head of {length} bytes" in refused(struct.pack("<I", length) + bytes(messages.LARGEST_HEAD + 2))


def test_a_head_cut_at_any_byte_is_refused_or_read_as_less() -> None:
    whole = pb.Reply(run=b"r" * 16, round=300, update=pb.Update(weight=3.0, metrics={"loss": 1.5}))
    raw = whole.SerializeToString(deterministic=True)
    for cut in range(len(raw)):
        try:
            head, payload = messages.split(struct.pack("<I", cut) + raw[:cut] + b"payload")
        except RefusedError as error:
            assert error.reason is Reason.BAD_PAYLOAD
        else:
            assert head != whole
            assert payload == b"payload"


@given(st.binary(max_size=300))
def test_nothing_but_a_refusal_comes_of_rubbish(data: bytes) -> None:
    for rubbish in (data, struct.pack("<I", min(len(data), 60)) + data):
        try:
            head, payload = messages.split(rubbish)
        except RefusedError as error:
            assert error.reason is Reason.BAD_PAYLOAD
        else:
            assert isinstance(head, pb.Reply)
            assert len(payload) <= len(data)


def test_unknown_fields_are_passed_over() -> None:
    raw = pb.Reply(round=3).SerializeToString() + b"\xf8\x3f\x01"
    head, _ = messages.split(struct.pack("<I", len(raw)) + raw)
    assert head.round == 3


@pytest.mark.parametrize("text", ["x", "größer ", "\N{SNOWMAN}", "\U0001f525", "a\udcff"])
def test_a_failure_in_any_script_fits_into_a_head(text: str) -> None:
    class Broken(world.Puller):
        def train(self, jobs):
            raise RuntimeError(text * 100_000)

    client = Client(Broken(), world.examples(0, 1), SPACE, ClientStore(None, SPACE))
    answer, payload = messages.split(client(whole_task()))
    assert answer.WhichOneof("result") == "failure", answer
    assert answer.failure.error.startswith("RuntimeError: ")
    assert answer.failure.trace
    assert not payload


def whole_task() -> bytes:
    """The first task of a run."""
    from fedpeft.federation import broadcast

    run = b"r" * 16
    task = pb.Task(run=run, round=1, client=1, merged=1, codec="Identity()", strategy="Mean()", space=SPACE.to_json())
    task.settings.CopyFrom(pb.Settings(local_steps=1, batch_size=1, learning_rate=1e-3, labels="all"))
    task.broadcasts.add(to_round=1, payload=broadcast.whole(world.START, SPACE, run, 1))
    return task.SerializeToString()


def test_a_task_of_no_round_is_refused() -> None:
    """A site that has answered nothing yet has no reply to give again."""
    client = world.clients(None)["ann"]
    answer, _ = messages.split(client(pb.Task(run=b"r" * 16, round=0, merged=1).SerializeToString()))
    assert answer.refusal.reason == "other round"


@given(st.binary(max_size=200))
def test_a_site_answers_any_bytes_with_a_reply(data: bytes) -> None:
    answer, _ = messages.split(world.clients(None, ("ann",))["ann"](data))
    assert answer.WhichOneof("result") in ("refusal", "failure")
