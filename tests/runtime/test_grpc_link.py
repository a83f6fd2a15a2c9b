"""Two ends of a session in one thread: each message comes exactly once or not at all, and never a wrong one."""

import itertools
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedpeft._proto import session_pb2 as pb
from fedpeft.errors import PayloadError, Reason, RefusedError
from fedpeft.federation import Parcel
from fedpeft.runtime.grpc import link as link_module
from fedpeft.runtime.grpc import spool as spool_module
from fedpeft.runtime.grpc.gate import Gate
from fedpeft.runtime.grpc.link import MOST_FRAMES, SMALL, WINDOW, Link, Message
from fedpeft.runtime.grpc.spool import PIECE, Spool
from tests.runtime.site_world import digest

BIG = os.urandom(3 * PIECE + 77)
TASK = digest(b"a task")


class End:
    """A link, the frames that it would send now, and all that it told."""

    def __init__(
        self, spool: Path, peer: str = "ann", gate: Gate[Link] | None = None, largest: int = 1 << 30, wants: Any = None
    ) -> None:
        self.gate: Gate[Link] = gate or Gate(1)
        self.messages: list[bytes] = []
        self.errors: list[RefusedError] = []
        self.drops: list[pb.Drop] = []
        self.link = Link(
            peer,
            Spool(spool),
            self.gate,
            largest,
            wanted=wants or (lambda offer: True),
            received=self._received,
            refused=self.errors.append,
            dropped=self.drops.append,
        )
        self._frames = map(pb.Frame.FromString, self.link.frames())

    def _received(self, message: Message) -> None:
        self.messages.append(bytes(message.data))
        message.discard()

    def next(self) -> pb.Frame | None:
        """What the sending thread would send, without waiting for it."""
        if self.link._frames or self.link._may_send():
            return next(self._frames)
        return None

    def all(self) -> list[pb.Frame]:
        return list(iter(self.next, None))

    def hears(self, *frames: pb.Frame) -> list[pb.Frame]:
        for frame in frames:
            self.link.handle(frame)
        return self.all()


def kinds(frames: list[pb.Frame]) -> list[str]:
    return [str(frame.WhichOneof("frame")) for frame in frames]


def offer(data: bytes, answers: bytes = TASK, **changes: Any) -> pb.Frame:
    facts = {"digest": digest(data), "size": len(data), "answers": answers} | changes
    return pb.Frame(offer=pb.Offer(data=data if len(data) <= SMALL else b"", **facts))


def chunks(data: bytes) -> list[pb.Frame]:
    return [
        pb.Frame(chunk=pb.Chunk(digest=digest(data), offset=at, data=data[at : at + PIECE]))
        for at in range(0, len(data), PIECE)
    ]


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, PIECE, PIECE + 1, WINDOW + PIECE + 1])
def test_messages_of_all_sizes_come_both_ways(tmp_path: Path, size: int) -> None:
    a, b = End(tmp_path / "a"), End(tmp_path / "b")
    up, down = os.urandom(size), os.urandom(size)
    a.link.send(Parcel.of(up), answers=TASK)
    b.link.send(Parcel.of(down))
    exchange(a, b)
    assert (a.messages, b.messages) == ([down], [up])
    assert not list(tmp_path.rglob("ann@*"))


def exchange(a: End, b: End) -> None:
    """Until neither has anything to say."""
    while frames := [(b, frame) for frame in a.all()] + [(a, frame) for frame in b.all()]:
        for end, frame in frames:
            end.link.handle(frame)


def test_no_more_than_a_window_is_sent_ahead(tmp_path: Path) -> None:
    a = End(tmp_path)
    data = bytes(3 * WINDOW)
    a.link.send(Parcel.of(data))
    assert kinds(a.all()) == ["offer"]
    frames = a.hears(pb.Frame(take=pb.Take(digest=digest(data), offset=PIECE)))
    assert [frame.chunk.offset for frame in frames] == [PIECE * i for i in range(1, 1 + WINDOW // PIECE)]
    assert kinds(a.hears(pb.Frame(kept=pb.Kept(digest=digest(data), offset=2 * PIECE)))) == ["chunk"]
    assert not a.hears(pb.Frame(drop=pb.Drop(digest=digest(data), reason="late")))
    assert not a.hears(pb.Frame(kept=pb.Kept(digest=digest(data), offset=3 * PIECE)))


def test_nothing_is_sent_before_it_is_asked_for(tmp_path: Path) -> None:
    """A message offered again, while acknowledgements of the first time are still on their way."""
    a = End(tmp_path)
    a.link.send(Parcel.of(BIG))
    assert kinds(a.hears(pb.Frame(kept=pb.Kept(digest=digest(BIG), offset=PIECE)))) == ["offer"]


def test_a_newer_message_takes_the_place_of_one_on_its_way(tmp_path: Path) -> None:
    a, b = End(tmp_path / "a"), End(tmp_path / "b")
    other = os.urandom(2 * PIECE)
    a.link.send(Parcel.of(BIG), answers=TASK)
    first, *_ = a.hears(*b.hears(*a.all()))
    b.hears(first)
    a.link.send(Parcel.of(other), answers=TASK)
    exchange(a, b)
    assert b.messages == [other]


def test_who_reads_nothing_is_given_up_and_costs_no_memory(tmp_path: Path) -> None:
    b = End(tmp_path)
    for i in range(10 * MOST_FRAMES):
        b.link.handle(offer(bytes([i % 251]) * 10))
    assert b.link.closed
    assert len(b.link._frames) == MOST_FRAMES
    assert len(b.messages) < 10 * MOST_FRAMES


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (offer(BIG, size=(1 << 30) + 1), "too large: at most 1073741824 bytes are taken, got 1073741825"),
        (offer(BIG, size=(1 << 64) - 1), "too large"),
        (offer(BIG, digest=b"short"), "expected a SHA-256, got 5 bytes"),
        (offer(b"small", size=4), "not what its sender announced"),
        (offer(b"small", size=5, digest=digest(b"other")), "not what its sender announced"),
    ],
)
def test_a_wrong_offer_is_dropped_and_the_link_goes_on(tmp_path: Path, frame: pb.Frame, reason: str) -> None:
    b = End(tmp_path)
    (answer,) = b.hears(frame)
    assert answer.drop.reason == Reason.BAD_PAYLOAD
    assert reason in answer.drop.detail
    assert [error.reason for error in b.errors] == [Reason.BAD_PAYLOAD]
    assert not list(tmp_path.iterdir())
    b.hears(offer(b"good"))
    assert b.messages == [b"good"]


@pytest.mark.parametrize("frame", [pb.Frame(), pb.Frame(hello=pb.Hello()), pb.Frame(welcome=pb.Welcome())])
def test_a_frame_out_of_place_is_no_protocol(tmp_path: Path, frame: pb.Frame) -> None:
    with pytest.raises(PayloadError, match="expected a frame of a message under way"):
        End(tmp_path).link.handle(frame)


def test_a_piece_of_another_size_is_no_protocol(tmp_path: Path) -> None:
    b = End(tmp_path)
    b.hears(offer(BIG))
    with pytest.raises(PayloadError, match="expected a piece of 1048576 bytes, got 1"):
        b.link.handle(pb.Frame(chunk=pb.Chunk(digest=digest(BIG), offset=0, data=b"x")))


def test_a_piece_out_of_place_is_passed_over(tmp_path: Path) -> None:
    b = End(tmp_path)
    b.hears(offer(BIG))
    first, second, third, last = chunks(BIG)
    other = pb.Frame(chunk=pb.Chunk(digest=digest(b"another message"), offset=0, data=bytes(PIECE)))
    assert not b.hears(second, other, last)
    kept = b.hears(first, first, third, second, first, third, last)
    assert [frame.kept.offset for frame in kept] == [PIECE, 2 * PIECE, 3 * PIECE, len(BIG)]
    assert b.messages == [BIG]


def test_a_lie_about_the_content_is_dropped_and_forgotten(tmp_path: Path) -> None:
    b = End(tmp_path)
    b.hears(offer(BIG, digest=digest(b"something else")))
    for chunk in chunks(BIG):
        chunk.chunk.digest = digest(b"something else")
        answers = b.hears(chunk)
    assert kinds(answers) == ["drop"]
    assert not b.messages
    assert not list(tmp_path.iterdir())
    assert not b.gate._inside


def test_what_the_disk_lost_comes_again(tmp_path: Path) -> None:
    """After a loss of power, a file may hold other bytes than were written."""
    a, b = End(tmp_path / "a"), End(tmp_path / "b")
    a.link.send(Parcel.of(BIG), answers=TASK)
    a.hears(*b.hears(*a.all()))
    b.hears(*itertools.islice(chunks(BIG), 2))
    (file,) = (tmp_path / "b").iterdir()
    for damage in (bytes(2 * PIECE), bytes(len(BIG)), BIG[:5]):
        file.write_bytes(damage)
        a, b = End(tmp_path / "a"), End(tmp_path / "b")
        a.link.send(Parcel.of(BIG), answers=TASK)
        exchange(a, b)
        assert b.messages == [BIG]


def test_one_place_is_given_to_one_after_the_other(tmp_path: Path) -> None:
    gate: Gate[Link] = Gate(1)
    ann, bob = (End(tmp_path, name, gate) for name in ("ann", "bob"))
    assert kinds(ann.hears(offer(BIG))) == ["take"]
    assert not bob.hears(offer(BIG))
    assert not bob.hears(*chunks(BIG)), "nobody asked for them"
    ann.hears(*chunks(BIG))
    assert ann.messages == [BIG]
    assert kinds(bob.all()) == ["take"]
    bob.link.close()
    assert not gate._inside


def test_who_falls_silent_lets_others_in_and_goes_on_later(tmp_path: Path) -> None:
    gate: Gate[Link] = Gate(1)
    ann, bob = (End(tmp_path, name, gate) for name in ("ann", "bob"))
    ann.hears(offer(BIG))
    ann.hears(chunks(BIG)[0])
    gate.rotate(0)
    assert not ann.all(), "nobody waits"
    bob.hears(offer(BIG))
    gate.rotate(3600)
    assert not bob.all()
    gate.rotate(0)
    assert kinds(bob.all()) == ["take"]
    assert not ann.hears(*chunks(BIG)[1:])
    bob.hears(*chunks(BIG))
    (take,) = ann.all()
    assert take.take.offset == PIECE
    ann.hears(*chunks(BIG)[1:])
    assert (ann.messages, bob.messages) == ([BIG], [BIG])


def test_the_end_of_a_round_ends_what_answers_it_and_nothing_else(tmp_path: Path) -> None:
    b = End(tmp_path)
    b.link.close_round(None)
    b.hears(offer(BIG))
    b.link.close_round(TASK)
    assert not b.errors
    b.link.close_round(digest(b"the next task"))
    (drop,) = b.all()
    assert (drop.drop.digest, drop.drop.reason) == (digest(BIG), Reason.LATE)
    assert not b.gate._inside
    assert not b.hears(*chunks(BIG))
    assert not b.messages


def test_a_closed_link_takes_no_place_and_says_only_what_it_had_to_say(tmp_path: Path) -> None:
    b = End(tmp_path)
    b.hears(offer(BIG))
    b.link.send(Parcel.of(BIG))
    b.link.handle(pb.Frame(take=pb.Take(digest=digest(BIG), offset=0)))
    b.link.bye("enough")
    b.link.handle(offer(BIG))
    assert not b.gate._inside
    assert not b.gate._waiting
    assert kinds(list(b._frames)) == ["offer", "bye"]


def test_a_refusal_of_the_receiver_is_told_at_both_ends(tmp_path: Path) -> None:
    def unwanted(offer: pb.Offer) -> bool:
        raise RefusedError(Reason.LATE, "the round is closed")

    a, b = End(tmp_path / "a"), End(tmp_path / "b", wants=unwanted)
    a.link.send(Parcel.of(BIG), answers=TASK)
    exchange(a, b)
    assert [error.detail for error in b.errors] == ["the round is closed"]
    assert [(drop.reason, drop.detail) for drop in a.drops] == [("late", "the round is closed")]


class Line:
    """Frames under way between a sender and a receiver that connect again and again; nothing else is kept."""

    def __init__(self, folder: Path, data: bytes, gate: Gate[Link] | None = None) -> None:
        self._folder, self._data, self._gate = folder, data, gate
        self.arrived: list[bytes] = []
        self.honest = True
        self.connect()

    def connect(self) -> None:
        if hasattr(self, "a"):
            self.a.link.close()
            self.b.link.close()
        self.a = End(self._folder / "a")
        self.b = End(self._folder / "b", gate=self._gate, wants=lambda offer: not self.arrived)
        self.b.link._received = self._received
        self.up: deque[pb.Frame] = deque()
        self.down: deque[pb.Frame] = deque()
        self.a.link.send(Parcel.of(self._data), answers=TASK)

    def _received(self, message: Message) -> None:
        self.arrived.append(bytes(message.data))
        message.discard()

    def step(self, draw: Any) -> None:
        match draw(st.sampled_from(["say", "say", "up", "up", "up", "down", "down", "cut", "damage"])):
            case "say":
                self.up.extend(itertools.islice(iter(self.a.next, None), draw(st.integers(1, 4))))
                self.down.extend(itertools.islice(iter(self.b.next, None), draw(st.integers(1, 4))))
            case "up":
                self.deliver(self.up, self.b)
            case "down":
                self.deliver(self.down, self.a)
            case "cut":
                self.connect()
            case "damage":
                self.damage(
                    draw(st.sampled_from(["drop", "twice", "swap"])), self.up if draw(st.booleans()) else self.down
                )

    def deliver(self, queue: deque[pb.Frame], to: End) -> None:
        if queue:
            try:
                to.link.handle(queue.popleft())
            except PayloadError:
                self.connect()

    @staticmethod
    def damage(how: str, queue: deque[pb.Frame]) -> None:
        match how:
            case "drop" if queue:
                queue.popleft()
            case "twice" if queue:
                queue.appendleft(queue[0])
            case "swap" if len(queue) > 1:
                queue[0], queue[1] = queue[1], queue[0]

    def finish(self) -> None:
        """A good connection at last."""
        self.connect()
        exchange(self.a, self.b)


@contextmanager
def small_pieces() -> Iterator[None]:
    """Within, messages of a few bytes go in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "PIECE", 4)
        patch.setattr(link_module, "PIECE", 4)
        patch.setattr(link_module, "WINDOW", 12)
        patch.setattr(link_module, "SMALL", 3)
        yield


@settings(deadline=None, max_examples=150)
@given(data=st.data(), message=st.binary(min_size=1, max_size=60))
@small_pieces()
def test_a_message_comes_once_over_any_bad_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, message: bytes
) -> None:
    line = Line(tmp_path_factory.mktemp("line"), message)
    for _ in range(data.draw(st.integers(0, 40))):
        line.step(data.draw)
        assert line.arrived in ([], [message])
    line.finish()
    assert line.arrived == [message]
    assert not line.b.gate._inside


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@small_pieces()
def test_messages_of_several_come_through_one_gate_over_any_bad_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, gate = tmp_path_factory.mktemp("lines"), Gate[Link](1)
    messages = [bytes([i]) * 11 for i in range(3)]
    lines = [Line(folder / str(i), message, gate) for i, message in enumerate(messages)]
    for _ in range(data.draw(st.integers(0, 40))):
        if data.draw(st.integers(0, 9)):
            data.draw(st.sampled_from(lines)).step(data.draw)
        else:
            gate.rotate(0)
    for line in lines:
        line.connect()
    for _ in range(3):
        for line in lines:
            exchange(line.a, line.b)
    assert [line.arrived for line in lines] == [[message] for message in messages]
    assert not gate._inside
    assert not gate._waiting


class GateLaws(RuleBasedStateMachine):
    """Places are never given twice, never lost, and never kept from who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate[int] = Gate(2)
        self.inside: dict[int, bool] = {}
        self.left: set[int] = set(range(5))

    @rule(who=st.integers(0, 4))
    def enter(self, who: int) -> None:
        self.inside[who] = False
        self.left.discard(who)
        self.gate.enter(who, lambda admitted: self.inside.__setitem__(who, admitted))

    @rule(who=st.integers(0, 4))
    def leave(self, who: int) -> None:
        self.inside.pop(who, None)
        self.left.add(who)
        self.gate.leave(who)

    @rule(who=st.integers(0, 4))
    def touch(self, who: int) -> None:
        self.gate.touch(who)

    @precondition(lambda self: not all(self.inside.values()))
    @rule()
    def rotate(self) -> None:
        waited = [who for who, admitted in self.inside.items() if not admitted]
        self.gate.rotate(0)
        assert sum(self.inside[who] for who in waited) == min(2, len(waited))

    @invariant()
    def places_are_given(self) -> None:
        assert sum(self.inside.values()) == min(2, len(self.inside))
        assert set(self.gate._inside) == {who for who, admitted in self.inside.items() if admitted}
        assert set(self.gate._waiting) == {who for who, admitted in self.inside.items() if not admitted}


GateLaws.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestGate = GateLaws.TestCase
