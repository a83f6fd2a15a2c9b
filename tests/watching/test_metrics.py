"""The page that Prometheus fetches, fetched over HTTP and parsed by its own parser."""

import math
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedpeft.errors import ConfigError
from fedpeft.federation import Event, Happening
from fedpeft.watching.metrics import Metrics
from tests.watching.story import HOSTILE, SITES, hostile, row, story

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """What a fetch brought."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = (sample for family in self.families.values() for sample in family.samples)
        self.values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}

    def __call__(self, metric: str, **labels: str) -> float:
        return self.values[metric, frozenset(labels.items())]

    def labelled(self, label: str) -> set[str]:
        return {value for _, labels in self.values for name, value in labels if name == label}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda: SITES)


def fetch(metrics: Metrics) -> Page:
    with closing(metrics.serve()) as exporter:
        return Page(urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=30).read().decode())


def test_a_run_is_counted(metrics: Metrics) -> None:
    began = time.time()
    for event in story():
        metrics(event)
    page = fetch(metrics)
    assert page("fedpeft_round") == 2
    assert page("fedpeft_rounds_total", outcome="committed") == 2
    assert page("fedpeft_rounds_total", outcome="failed") == 1
    assert page("fedpeft_updates_total", site="ann", outcome="counted") == 2
    assert page("fedpeft_updates_total", site="cat", outcome="counted") == 0
    assert page("fedpeft_updates_total", site="cat", outcome="refused") == 2
    assert [page("fedpeft_up_bytes_total", site=site) for site in SITES] == [200, 300, 100]
    assert page("fedpeft_down_bytes_total", site="cat") == 2000
    assert [page("fedpeft_site_connected", site=site) for site in SITES] == [1, 1, 0]
    assert began <= page("fedpeft_site_last_seen_timestamp_seconds", site="ann") <= time.time()
    assert (page("fedpeft_loss"), page("fedpeft_accuracy")) == (0.5, 0.5)
    assert page("fedpeft_round_seconds_count") == 2
    assert page("fedpeft_round_seconds_sum") == 14
    assert page("fedpeft_rejected_total", reason="bad payload") == 2
    assert page("fedpeft_rejected_total", reason="other") == 1
    assert page("fedpeft_alarms_total") == 1


def test_names_and_helps_are_as_prometheus_wants_them(metrics: Metrics) -> None:
    for name, family in fetch(metrics).families.items():
        assert name.startswith(("fedpeft_", "process_"))
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_a_site_that_never_came_is_shown_and_what_is_unmeasured_is_no_number(metrics: Metrics) -> None:
    page = fetch(metrics)
    assert page.labelled("site") == set(SITES)
    assert page("fedpeft_site_connected", site="cat") == 0
    assert math.isnan(page("fedpeft_loss"))


def test_names_and_texts_from_outside_become_no_labels(metrics: Metrics) -> None:
    for event in hostile():
        metrics(event)
    for number in range(1000):
        for kind in Happening:
            metrics(Event(kind, f"stranger-{number}", 1, {"why": f"reason-{number}: x", "round": 1}))
    page = fetch(metrics)
    assert page.labelled("site") == set(SITES)
    assert page.labelled("reason") <= {"other", "bad payload"}
    assert not page.labelled("site") & set(HOSTILE)
    assert len(page.values) < 150


def test_a_site_that_joins_the_roster_late_is_counted() -> None:
    roster = ["ann"]
    metrics = Metrics(lambda: roster)
    metrics(Event(Happening.CONNECTED, "bob"))
    assert fetch(metrics).labelled("site") == {"ann"}
    roster.append("bob")
    metrics(Event(Happening.CONNECTED, "bob"))
    assert fetch(metrics)("fedpeft_site_connected", site="bob") == 1


def test_numbers_that_cannot_be_counted_change_nothing(metrics: Metrics) -> None:
    for value in (-5, math.nan, math.inf, "many", None):
        metrics(Event(Happening.COUNTED, "ann", 1, {"up_bytes": value}))
        metrics(Event(Happening.COMMITTED, "", 1, row(1, loss=value, round_s=value)))
    page = fetch(metrics)
    assert page("fedpeft_up_bytes_total", site="ann") == 0
    assert page("fedpeft_round_seconds_sum") == 0


def test_a_resumed_run_begins_where_it_stands(metrics: Metrics) -> None:
    metrics.recall([])
    metrics.recall([row(1), row(2)])
    page = fetch(metrics)
    assert (page("fedpeft_round"), page("fedpeft_accuracy")) == (2, 0.5)
    assert page("fedpeft_rounds_total", outcome="committed") == 0


def test_many_threads_count_while_the_page_is_fetched(metrics: Metrics) -> None:
    threads = [threading.Thread(target=lambda: [metrics(event) for event in story() * 20]) for _ in range(8)]
    with closing(metrics.serve()) as exporter:
        for thread in threads:
            thread.start()
        for _ in range(5):
            urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/", timeout=30).read()
        for thread in threads:
            thread.join()
    page = fetch(metrics)
    assert page("fedpeft_updates_total", site="ann", outcome="counted") == 2 * 20 * 8
    assert page("fedpeft_up_bytes_total", site="bob") == 2 * 20 * 8 * 150


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_it_listens_on_this_machine_only_unless_a_host_is_named(metrics: Metrics) -> None:
    for address, host in [
        ("0", "127.0.0.1"),
        (":0", "127.0.0.1"),
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "0.0.0.0"),
    ]:
        with closing(metrics.serve(address)) as exporter:
            assert exporter._server.server_address[0] == host


def test_a_closed_exporter_frees_its_port(metrics: Metrics) -> None:
    exporter = metrics.serve()
    exporter.close()
    with closing(metrics.serve(f"127.0.0.1:{exporter.port}")) as again:
        assert again.port == exporter.port


def test_an_address_that_cannot_be_had_is_named(metrics: Metrics, busy: int) -> None:
    with pytest.raises(ConfigError, match="Address already in use"):
        metrics.serve(f"127.0.0.1:{busy}")
    for address in ("", "localhost", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", "host:²"):
        with pytest.raises(ConfigError, match="expected host:port"):
            metrics.serve(address)


def test_the_registry_of_the_process_is_left_alone(metrics: Metrics) -> None:
    text = prometheus_client.generate_latest().decode()
    assert "fedpeft" not in text
