"""Messages on their way: taken up where they stopped, whole or not at all, whatever the disk does."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import PayloadError
from fedpeft.runtime.grpc import spool as module
from fedpeft.runtime.grpc.spool import PIECE, Incoming, Spool
from tests.runtime.site_world import digest, open_files

DATA = os.urandom(2 * PIECE + 1000)


def grow(incoming: Incoming, data: bytes, pieces: int = 1 << 30) -> None:
    for _ in range(pieces):
        if incoming.offset == incoming.size:
            return
        incoming.add(data[incoming.offset : incoming.offset + PIECE])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_message_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    first = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    grow(first, DATA, pieces=1)
    again = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    assert (first.recalled, again.recalled, again.offset) == (0, PIECE, PIECE)
    grow(again, DATA)
    assert again.whole() == DATA


def test_what_is_whole_on_the_disk_is_whole(tmp_path: Path) -> None:
    grow(Spool(tmp_path).open("ann", digest(DATA), len(DATA)), DATA)
    again = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    assert again.offset == len(DATA)
    assert again.whole() == DATA


def test_one_sender_has_one_message_and_does_not_touch_anothers(tmp_path: Path) -> None:
    spool, other = Spool(tmp_path), b"x" * 10
    for sender in ("ann", "ann.b", "an", "bob"):
        grow(spool.open(sender, digest(DATA), len(DATA)), DATA, pieces=1)
    spool.open("ann", digest(other), len(other))
    kept = {f"{sender}@{digest(DATA).hex()}" for sender in ("ann.b", "an", "bob")}
    assert names(tmp_path) == {*kept, f"ann@{digest(other).hex()}"}


def test_another_message_than_was_announced_is_forgotten(tmp_path: Path) -> None:
    incoming = Spool(tmp_path).open("ann", digest(b"other"), len(DATA))
    grow(incoming, DATA)
    with pytest.raises(PayloadError, match="not what its sender announced"):
        incoming.whole()
    assert not names(tmp_path)


def test_a_file_longer_than_the_message_is_begun_anew(tmp_path: Path) -> None:
    grow(Spool(tmp_path).open("ann", digest(DATA), len(DATA)), DATA)
    shorter = Spool(tmp_path).open("ann", digest(DATA), 5)
    assert (shorter.offset, shorter.path.stat().st_size) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE + 1])
def test_a_piece_has_the_one_size_that_it_can_have(tmp_path: Path, size: int) -> None:
    incoming = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    with pytest.raises(PayloadError, match=f"expected a piece of {PIECE} bytes, got {size}"):
        incoming.add(DATA[:size])
    grow(incoming, DATA, pieces=2)
    with pytest.raises(PayloadError, match="expected a piece of 1000 bytes, got 999"):
        incoming.add(DATA[-1000:-1])
    assert incoming.path.read_bytes() == DATA[: 2 * PIECE]


def test_a_message_that_goes_on_elsewhere_grows_no_more(tmp_path: Path) -> None:
    """A connection that is not known to be dead yet may still hand over a piece: it must not reach the file."""
    spool = Spool(tmp_path)
    old = spool.open("ann", digest(DATA), len(DATA))
    new = spool.open("ann", digest(DATA), len(DATA))
    with pytest.raises(PayloadError, match="goes on over another connection"):
        old.add(bytes(PIECE))
    grow(new, DATA)
    assert new.whole() == DATA


def test_a_whole_message_never_changes_and_outlives_its_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    incoming = spool.open("ann", digest(DATA), len(DATA))
    grow(incoming, DATA)
    view = incoming.whole()
    spool.open("ann", digest(DATA), 7)
    longer = spool.open("ann", digest(DATA), 2 * len(DATA))
    grow(longer, bytes(2 * len(DATA)), pieces=1)
    assert view == DATA
    incoming.discard()
    incoming.discard()
    assert view == DATA


def test_no_file_stays_open(tmp_path: Path) -> None:
    spool, before = Spool(tmp_path), open_files()
    growing = [spool.open(f"site-{i}", digest(DATA), len(DATA)) for i in range(20)]
    for incoming in growing:
        grow(incoming, DATA, pieces=1)
    assert open_files() == before
    grow(growing[0], DATA)
    view = growing[0].whole()
    assert view == DATA
    del view
    assert open_files() == before


@pytest.mark.parametrize("written", [0, 1, PIECE // 2])
def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    genuine, room = os.pwrite, [PIECE + written]

    def full(file: int, data: memoryview, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = genuine(file, data[: room[0]], offset)
        room[0] -= done
        return done

    monkeypatch.setattr(os, "pwrite", full)
    incoming = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    with pytest.raises(OSError, match="No space left"):
        grow(incoming, DATA)
    assert incoming.offset == PIECE
    again = Spool(tmp_path).open("ann", digest(DATA), len(DATA))
    assert again.offset == PIECE + written
    with pytest.raises(OSError, match="No space left"):
        grow(again, DATA)
    room[0] = 1 << 30
    for resumed in (again, Spool(tmp_path).open("ann", digest(DATA), len(DATA))):
        grow(resumed, DATA)
        assert resumed.whole() == DATA


@given(data=st.binary(min_size=1, max_size=40), cuts=st.lists(st.integers(0, 12), max_size=6))
def test_any_interruptions_give_the_same_message(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 4)
        for cut in [*cuts, 1 << 30]:
            incoming = Spool(folder).open("ann", digest(data), len(data))
            for _ in range(cut):
                if incoming.offset == len(data):
                    break
                incoming.add(data[incoming.offset : incoming.offset + 4])
        assert incoming.whole() == data
