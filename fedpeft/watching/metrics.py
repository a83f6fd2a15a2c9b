"""Metrics for Prometheus, in a registry of their own."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from fedpeft import __version__
from fedpeft.errors import ConfigError, Reason
from fedpeft.federation.events import Event, Happening
from fedpeft.federation.transport import NodeId

_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_NO_SIGN_OF_LIFE = (Happening.ASKED, Happening.REJECTED)


class Metrics:
    """Counts what happens, for Prometheus to fetch.

    Args:
        roster: the sites that may be named in a label; asked again when another name comes. Events of any other
            node change no metric of a site.
    """

    def __init__(self, roster: Callable[[], Collection[NodeId]]) -> None:
        self._roster = roster
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge("fedpeft_build_info", "The version that runs.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._round = Gauge("fedpeft_round", "Round that was committed last.", registry=registry)
        self._rounds = Counter("fedpeft_rounds", "Rounds by how they ended.", ["outcome"], registry=registry)
        self._loss = Gauge("fedpeft_loss", "Loss of the global adapter.", registry=registry)
        self._accuracy = Gauge("fedpeft_accuracy", "Accuracy of the global adapter.", registry=registry)
        self._seconds = Histogram(
            "fedpeft_round_seconds",
            "Seconds from a round's opening to its commit.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._reasons = Counter(
            "fedpeft_rejected", "Nodes and replies that were turned away, by reason.", ["reason"], registry=registry
        )
        self._alarms = Counter("fedpeft_alarms", "Events that no honest node causes.", registry=registry)
        self._sites = _Sites(registry)
        self._loss.set(math.nan)
        self._accuracy.set(math.nan)
        for outcome in ("committed", "failed"):
            self._rounds.labels(outcome)
        for site in roster():
            self._sites.add(site)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin where a resumed run stands; counters begin at nothing, as Prometheus expects of a new process.

        Args:
            rows: of metrics.jsonl.
        """
        if rows:
            self._show(rows[-1])

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event.kind:
            case Happening.COMMITTED:
                self._rounds.labels("committed").inc()
                self._seconds.observe(_number(event.facts, "round_s"))
                self._show(event.facts)
            case Happening.FAILED:
                self._rounds.labels("failed").inc()
            case Happening.REFUSED | Happening.REJECTED:
                self._reasons.labels(_reason(event.facts)).inc()
            case Happening.ALARM:
                self._alarms.inc()
        if self._is_site(event.node):
            self._sites.count(event)

    def serve(self, address: str = "127.0.0.1:0") -> "Exporter":
        """Answer Prometheus over HTTP, which needs no password: on this machine only, unless a host is named.

        Args:
            address: "host:port" or "port"; port 0 takes a free one.

        Raises:
            ConfigError: the address is none, or not to be had.
        """
        host, _, port = address.rpartition(":")
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"address of the metrics: expected host:port or a port, got {address!r}")
        try:
            server, thread = start_http_server(int(port), host.strip("[]") or "127.0.0.1", self.registry)
        except OSError as error:
            raise ConfigError(f"metrics cannot be served on {address}: {error.strerror or error}") from None
        return Exporter(server, thread)

    def _is_site(self, node: NodeId) -> bool:
        if not node:
            return False
        if node not in self._sites.known and node in self._roster():
            self._sites.add(node)
        return node in self._sites.known

    def _show(self, row: Mapping[str, object]) -> None:
        self._round.set(_number(row, "round"))
        self._loss.set(_number(row, "loss", math.nan))
        self._accuracy.set(_number(row, "accuracy", math.nan))


class _Sites:
    """What is counted of each site."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.known: set[NodeId] = set()
        self._updates = Counter(
            "fedpeft_updates", "Updates by what became of them.", ["site", "outcome"], registry=registry
        )
        self._up = Counter("fedpeft_up_bytes", "Bytes of replies.", ["site"], registry=registry)
        self._down = Counter("fedpeft_down_bytes", "Bytes of tasks.", ["site"], registry=registry)
        self._connected = Gauge("fedpeft_site_connected", "1 if the site is connected.", ["site"], registry=registry)
        self._seen = Gauge(
            "fedpeft_site_last_seen_timestamp_seconds", "When the site was last heard.", ["site"], registry=registry
        )

    def add(self, site: NodeId) -> None:
        """Show a site from the start, so that one that never came can be told from one that nobody expects."""
        for outcome in ("counted", "refused"):
            self._updates.labels(site, outcome)
        for metric in (self._up, self._down, self._connected):
            metric.labels(site)
        self.known.add(site)

    def count(self, event: Event) -> None:
        site = event.node
        match event.kind:
            case Happening.CONNECTED:
                self._connected.labels(site).set(1)
            case Happening.DISCONNECTED:
                self._connected.labels(site).set(0)
            case Happening.ASKED:
                self._down.labels(site).inc(_number(event.facts, "down_bytes"))
            case Happening.COUNTED | Happening.REFUSED:
                self._updates.labels(site, event.kind.value).inc()
                self._up.labels(site).inc(_number(event.facts, "up_bytes"))
        if event.kind not in _NO_SIGN_OF_LIFE:
            self._seen.labels(site).set(time.time())


class Exporter:
    """An HTTP server that answers Prometheus until it is closed."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server, self._thread = server, thread
        self.port = server.server_port

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _number(facts: Mapping[str, object], name: str, otherwise: float = 0.0) -> float:
    """A fact that is a number and can be counted."""
    value = facts.get(name)
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    return otherwise


def _reason(facts: Mapping[str, object]) -> str:
    """One of the few words that a reason begins with: a label takes no text from outside."""
    word = str(facts.get("why", "")).partition(":")[0]
    return word if word in set(Reason) else "other"
