"""The journal: what it returned from is on the disk, whatever was torn after."""

import os
from pathlib import Path

import pytest

from fedpeft.durable import read_sealed, write_durably, write_sealed
from fedpeft.errors import JournalError
from fedpeft.federation import Journal


def filled(folder: Path) -> list[dict[str, object]]:
    with Journal(folder) as journal:
        journal.append("BEGIN", text="größer\n")
        journal.append("OPEN", round=1, cohort=["a", "b"], number=0.1 + 0.2)
        journal.append("CLOSE", round=1)
        return list(journal.records)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = filled(tmp_path)
    with Journal(tmp_path) as journal:
        assert journal.records == records
        assert journal.of("OPEN", 1) == [records[1]]
        assert journal.of("OPEN", 2) == []


def test_a_last_line_torn_at_any_byte_is_as_if_never_written(tmp_path: Path) -> None:
    records = filled(tmp_path)
    log = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for cut in range(last, len(whole)):
        log.write_bytes(whole[:cut])
        with Journal(tmp_path) as journal:
            assert journal.records == records[:-1]
            journal.append("CLOSE", round=1)
        assert log.read_bytes() == whole


def test_damage_before_the_last_line_is_loud(tmp_path: Path) -> None:
    filled(tmp_path)
    log = tmp_path / "log.jsonl"
    whole = bytearray(log.read_bytes())
    whole[30] ^= 1
    log.write_bytes(whole)
    with pytest.raises(JournalError, match="line 1 of 3 is damaged"):
        Journal(tmp_path)
    log.write_bytes(b"")
    Journal(tmp_path).close()


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    with Journal(tmp_path):
        pid = os.fork()
        if pid == 0:
            try:
                Journal(tmp_path)
            except JournalError as error:
                os._exit(7 if "another process" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    Journal(tmp_path).close()


def test_blobs_are_named_by_what_they_hold(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        one, two = journal.put(b"one"), journal.put(b"two")
        assert journal.put(b"one") == one
        assert journal.get(one) == b"one"
        journal.keep_only({two})
        with pytest.raises(JournalError, match="a blob is missing"):
            journal.get(one)
        (tmp_path / "blobs" / two).write_bytes(b"tww")
        with pytest.raises(JournalError, match="not what the name says"):
            journal.get(two)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_sealed_file_tells_damage(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_sealed(path, b"content")
    assert read_sealed(path) == b"content"
    for i in range(len(path.read_bytes())):
        damaged = bytearray(path.read_bytes())
        damaged[i] ^= 0x10
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(JournalError, match="checksum"):
            read_sealed(tmp_path / "damaged")
