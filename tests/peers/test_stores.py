"""What a peer must not lose: cut off anywhere, damaged anywhere, killed anywhere."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft import durable
from fedpeft.errors import JournalError
from fedpeft.peers import store as stores
from fedpeft.peers.store import FolderStore, MemoryStore

RECORDS = [b"one", b"", b"three" * 3, b"\0" * 5]


def filled(folder: Path, records: list[bytes] = RECORDS) -> Path:
    """The log of a store with some records."""
    store = FolderStore(folder)
    for record in records:
        store.append(record, durable=True)
    store.close()
    return folder / "log.0"


def reopened(folder: Path) -> list[bytes]:
    store = FolderStore(folder)
    records = list(store.records())
    store.close()
    return records


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "peer")
    assert store.snapshot() is None
    store.append(b"a", durable=False)
    store.append(b"b", durable=True)
    assert list(store.records()) == [b"a", b"b"]
    with pytest.raises(JournalError, match="another process"):
        FolderStore(tmp_path / "peer")
    store.close()
    assert reopened(tmp_path / "peer") == [b"a", b"b"]


def test_a_log_that_ends_anywhere_keeps_its_whole_records(tmp_path: Path) -> None:
    data = filled(tmp_path).read_bytes()
    ends = [0]
    for record in RECORDS:
        ends.append(ends[-1] + 16 + len(record))
    for end in range(len(data) + 1):
        (tmp_path / "log.0").write_bytes(data[:end])
        whole = sum(end >= limit for limit in ends) - 1
        assert reopened(tmp_path) == RECORDS[:whole]
        assert (tmp_path / "log.0").stat().st_size == ends[whole], "the rest is cut off, and never comes back"


def test_a_tail_of_zeros_is_what_a_power_cut_leaves(tmp_path: Path) -> None:
    data = filled(tmp_path).read_bytes()
    (tmp_path / "log.0").write_bytes(data + bytes(100))
    assert reopened(tmp_path) == RECORDS
    assert (tmp_path / "log.0").read_bytes() == data


def test_damage_is_never_taken_for_an_end(tmp_path: Path) -> None:
    """Whatever bit is turned: were it silent, the peer would publish again what it has published."""
    data = filled(tmp_path).read_bytes()
    for bit in range(8 * len(data)):
        bent = bytearray(data)
        bent[bit // 8] ^= 1 << bit % 8
        (tmp_path / "log.0").write_bytes(bent)
        with pytest.raises(JournalError, match="damaged at byte"):
            FolderStore(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 300))
def test_any_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[bytes], cut: int) -> None:
    folder = tmp_path_factory.mktemp("peer")
    data = filled(folder, records).read_bytes()
    (folder / "log.0").write_bytes(data[:cut])
    assert reopened(folder) == records[: len(reopened(folder))]


def test_a_new_epoch_begins_with_its_snapshot_and_one_record(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.append(b"old", durable=True)
    store.begin(1, b"first", b"carried")
    store.begin(4, b"fourth", b"over")
    assert (store.snapshot(), list(store.records())) == (b"fourth", [b"over"])
    store.append(b"new", durable=False)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "log.4", "snapshot.4"]
    assert reopened(tmp_path) == [b"over", b"new"]


class Killed(BaseException):
    """The process ends here."""


def _killing(at: int, call: Callable[..., object], count: list[int]) -> Callable[..., object]:
    def wrapped(*args: object, **kwargs: object) -> object:
        count[0] += 1
        if count[0] == at:
            raise Killed
        return call(*args, **kwargs)

    return wrapped


def test_a_crash_between_any_two_steps_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for at in range(1, 100):
        folder = tmp_path / str(at)
        store = FolderStore(folder)
        store.begin(1, b"old", b"first")
        store.append(b"said", durable=True)
        count = [0]
        with monkeypatch.context() as patch:
            for name in ("fsync", "open", "close"):
                patch.setattr(os, name, _killing(at, getattr(os, name), count))
            for name in ("replace", "unlink", "open"):
                patch.setattr(Path, name, _killing(at, getattr(Path, name), count))
            try:
                store.begin(2, b"new", b"second")
            except Killed:
                pass
            else:
                store.close()
                break
        store.close()
        again = FolderStore(folder)
        left = again.snapshot(), tuple(again.records())
        assert left in ((b"old", (b"first", b"said")), (b"new", (b"second",)))
        seen.add(left[0])
        again.begin(2, b"new", b"second")
        again.append(b"goes on", durable=True)
        assert list(again.records()) == [b"second", b"goes on"]
        again.close()
    assert at > 8
    assert seen == {b"old", b"new"}
    assert durable.flush_folder is stores.flush_folder


def test_a_snapshot_without_its_log_is_no_store(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.begin(3, b"snapshot", b"first")
    store.close()
    (tmp_path / "log.3").unlink()
    with pytest.raises(JournalError, match="start with --restored"):
        FolderStore(tmp_path)


def test_a_log_that_is_gone_is_missed_in_the_first_epoch_too(tmp_path: Path) -> None:
    filled(tmp_path).unlink()
    with pytest.raises(JournalError, match="start with --restored"):
        FolderStore(tmp_path)


def test_a_store_keeps_nothing_in_memory(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    tracemalloc.start()
    for _ in range(20):
        store.append(bytes(100_000), durable=False)
    assert tracemalloc.get_traced_memory()[0] < 500_000
    tracemalloc.stop()
    assert sum(map(len, store.records())) == 2_000_000
    store.close()


def test_a_damaged_snapshot_is_not_given_out(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.begin(1, b"snapshot", b"first")
    (tmp_path / "snapshot.1").write_bytes(b"x" * 40)
    with pytest.raises(JournalError, match="checksum"):
        store.snapshot()
    store.close()


@pytest.mark.parametrize("part", [0, 1, 17])
def test_a_full_disk_ends_all_writing(tmp_path: Path, part: int) -> None:
    """What is on the disk then, nobody knows; only a restart reads it."""
    store = FolderStore(tmp_path)
    store.append(b"kept", durable=True)
    log = store._log

    class Full:
        closed = False

        def write(self, data: bytes) -> int:
            return log.write(data[:part])

        def close(self) -> None:
            Full.closed = True
            log.close()

    store._log = Full()  # type: ignore[assignment]
    with pytest.raises(OSError) as caught:
        store.append(b"lost", durable=True)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(JournalError, match="make room"):
        store.append(b"after", durable=True)
    assert list(store.records()) == [b"kept"]
    store.close()
    assert reopened(tmp_path) == [b"kept"]


def test_memory_crashes_as_a_disk_does() -> None:
    store = MemoryStore()
    for record, lasting in ((b"a", False), (b"b", True), (b"c", False)):
        store.append(record, durable=lasting)
    assert list(store.crashed().records()) == [b"a", b"b"]
    store.begin(1, b"snapshot", b"first")
    store.append(b"d", durable=False)
    left = store.crashed()
    assert (left.snapshot(), list(left.records())) == (b"snapshot", [b"first"])
    left.append(b"e", durable=True)
    assert list(left.crashed().records()) == [b"first", b"e"]
    assert list(store.records()) == [b"first", b"d"]
