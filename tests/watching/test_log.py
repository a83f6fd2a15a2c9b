"""One JSON object a line, whatever happens and whatever texts come."""

import io
import json
import logging
import math
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import ConfigError
from fedpeft.federation import Event, Happening
from fedpeft.watching.guard import Guarded
from fedpeft.watching.log import Log
from tests.watching.disk import full_at
from tests.watching.story import HOSTILE, hostile, row, story


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode("ascii").split("\n")[:-1]]


def test_every_event_is_a_line_with_when_what_who_and_which_round(tmp_path: Path) -> None:
    path, before = tmp_path / "logs" / "events.jsonl", datetime.now(UTC)
    log, events = Log.to_file(path, logging.DEBUG), story()
    for event in events:
        log(event)
        assert path.read_bytes().endswith(b"\n")
    written = lines(path)
    log.close()
    told = [(event.kind.value, event.node, event.round) for event in events]
    assert [(line["event"], line["node"], line["round"]) for line in written] == told
    for line in written:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert abs(datetime.fromisoformat(line["time"]) - before).total_seconds() < 600
    levels = {line["event"]: line["level"] for line in written}
    assert (levels["committed"], levels["refused"], levels["alarm"]) == ("info", "warning", "error")
    committed = next(line for line in written if line["event"] == "committed")
    assert committed["loss"] == 1.0
    assert "sites" not in committed


def test_only_facts_known_by_name_are_written() -> None:
    stream = io.StringIO()
    log = Log.to_stream(stream)
    secret = {"private_key": "MIIE", "text": "a patient", "trace": "Traceback", "tokens": [1, 2], "up_bytes": 7}
    for kind in Happening:
        log(Event(kind, "ann", 1, secret))
    assert not re.search("MIIE|patient|Traceback|tokens", stream.getvalue())
    assert '"up_bytes": 7' in stream.getvalue()


@pytest.mark.parametrize(
    "why",
    [
        "failed: KeyError: 'John Doe; born 1970'",
        "round 1: 1 of 3 clients were counted, 2 needed: cat: failed: KeyError: 'John Doe; born 1970'",
        "site 'cat' failed:\nTraceback (most recent call last):\nKeyError: 'John Doe'",
    ],
)
@pytest.mark.parametrize("kind", [Happening.REFUSED, Happening.FAILED])
def test_what_a_site_says_of_its_own_failure_may_quote_its_data_and_is_not_written(kind: Happening, why: str) -> None:
    stream = io.StringIO()
    Log.to_stream(stream)(Event(kind, "cat", 1, {"why": why}))
    assert "John" not in stream.getvalue()
    assert "failed" in json.loads(stream.getvalue())["why"]


def test_no_text_breaks_a_line(tmp_path: Path) -> None:
    log, events = Log.to_file(tmp_path / "events", logging.DEBUG), hostile()
    for event in events:
        log(event)
    log.close()
    written = lines(tmp_path / "events")
    assert len(written) == len(events)
    assert all(len(str(value)) <= 500 for line in written for value in line.values())
    assert max(len(line) for line in (tmp_path / "events").read_bytes().splitlines()) < 8000
    assert len(HOSTILE) * 2 <= sum(line["event"] == "alarm" for line in written)


def test_numbers_that_json_has_no_word_for_are_null() -> None:
    stream = io.StringIO()
    Log.to_stream(stream)(Event(Happening.COMMITTED, round=1, facts=row(1, loss=math.nan, accuracy=None)))
    line = json.loads(stream.getvalue(), parse_constant=lambda name: pytest.fail(name))
    assert line["loss"] is None
    assert line["accuracy"] is None


def test_a_log_rotates_and_no_line_is_cut(tmp_path: Path) -> None:
    log = Log.to_file(tmp_path / "events", largest_bytes=4000, kept=3)
    for number in range(200):
        log(Event(Happening.OPENED, round=number, facts={"cohort": 3}))
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["events", "events.1", "events.2", "events.3"]
    assert all(path.stat().st_size <= 4000 for path in files)
    rounds = [line["round"] for path in (files[3], files[2], files[1], files[0]) for line in lines(path)]
    assert rounds == list(range(rounds[0], 200))


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    log = Log.to_file(tmp_path / "events", largest_bytes=20000, kept=50)

    def tell(site: int) -> None:
        for number in range(100):
            log(Event(Happening.ASKED, f"site-{site}", number, {"down_bytes": number}))

    threads = [threading.Thread(target=tell, args=(site,)) for site in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    told = [(line["node"], line["round"]) for path in tmp_path.iterdir() for line in lines(path)]
    assert sorted(told) == sorted((f"site-{site}", number) for site in range(8) for number in range(100))


def test_a_resumed_run_appends_and_a_torn_last_line_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b'{"event": "opened"}\n{"event": "comm')
    log = Log.to_file(path)
    log(Event(Happening.FINISHED))
    log.close()
    first, torn, last = path.read_text().splitlines()
    assert (first, torn) == ('{"event": "opened"}', '{"event": "comm')
    assert json.loads(last)["event"] == "finished"


def test_a_full_disk_is_said_once_and_ends_nothing() -> None:
    log, said = Log.to_file(Path("/dev/full")), list[str]()
    watch = Guarded(log, said.append)
    for event in story() * 20:
        watch(event)
    log.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_a_line_that_a_full_disk_cut_short_spoils_no_later_one(tmp_path: Path) -> None:
    path, said = tmp_path / "events", list[str]()
    log = Log.to_file(path)
    watch = Guarded(log, said.append)
    watch(Event(Happening.OPENED, round=1))
    with full_at(path.stat().st_size + 50):
        for number in range(2, 500):
            watch(Event(Happening.OPENED, round=number))
    watch(Event(Happening.OPENED, round=500))
    log.close()
    first, torn, last = path.read_text().splitlines()
    assert len(said) == 1
    assert len(torn) == 50
    assert (json.loads(first)["round"], json.loads(last)["round"]) == (1, 500)


def test_a_log_goes_on_where_its_file_can_be_written_again(tmp_path: Path) -> None:
    folder, said = tmp_path / "logs", list[str]()
    log = Log.to_file(folder / "events", largest_bytes=300, kept=1)
    watch = Guarded(log, said.append)
    watch(Event(Happening.OPENED, round=1))
    folder.rename(tmp_path / "elsewhere")
    for number in (2, 3, 4):
        watch(Event(Happening.OPENED, round=number))
    (tmp_path / "elsewhere").rename(folder)
    watch(Event(Happening.OPENED, round=5))
    log.close()
    assert len(said) == 1
    assert lines(folder / "events")[-1]["round"] == 5


def test_other_loggers_of_the_process_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    loggers = dict(logging.Logger.manager.loggerDict)
    with caplog.at_level(logging.DEBUG):
        Log.to_stream(io.StringIO())(Event(Happening.FINISHED))
    assert not caplog.records
    assert logging.Logger.manager.loggerDict == loggers


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} cannot be written"):
        Log.to_file(tmp_path)


def test_the_facts_of_a_real_run_are_known_by_name(tmp_path: Path) -> None:
    from fedpeft.federation import Journal, Plan, Server
    from fedpeft.runtime.memory import MemoryTransport
    from tests.federation import world

    stream = io.StringIO()
    with Journal(tmp_path / "journal") as journal:
        transport = MemoryTransport(world.clients(None))
        server = Server(Plan(rounds=1), world.SPACE, world.START, transport, journal, watch=Log.to_stream(stream))
        (metrics,) = server.run()
    by_kind = {line["event"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    assert by_kind.keys() == {"opened", "asked", "counted", "committed", "finished"}
    assert by_kind["asked"]["down_bytes"] > 0
    assert {"up_bytes", "weight", "loss"} <= by_kind["counted"].keys()
    unwritten = metrics.keys() - by_kind["committed"].keys()
    assert unwritten == {"sites", "up_bytes_fp32", "down_bytes_fp32"}
