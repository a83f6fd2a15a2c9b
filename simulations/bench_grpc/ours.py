"""Rows of the gRPC runtime, and of raw copies of the same bytes by the same processes."""

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from fedpeft import keys
from simulations.bench_grpc import processes, readings

SMALL, OVERHEAD_ROUNDS = 1000, 30


def rows(sites: int, sizes_mb: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each size, by as many sites."""
    with running(sites) as bench:
        idle = readings.memory(bench.pid, "VmRSS")["VmRSS"]
        bench.prepare(SMALL)
        overhead = 1000 * statistics.median(bench.exchange(SMALL) for _ in range(OVERHEAD_ROUNDS))
        return [bench.row(size, overhead, idle) for size in sizes_mb]


@contextmanager
def running(sites: int) -> Iterator["Bench"]:
    """A server, its sites and a receiver of raw copies, all connected; the import of torch is shared, by forking."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulations.bench_grpc.processes"])
    with tempfile.TemporaryDirectory(prefix="bench-grpc-") as folder:
        bench = Bench(context, Path(folder), sites)
        try:
            bench.connect()
            yield bench
        finally:
            bench.end()


class Bench:
    """Asks a server process and a raw receiver for one transfer after the other, and reads what they cost."""

    def __init__(self, context: ForkServerContext, folder: Path, sites: int) -> None:
        self.sites, self.pid = sites, 0
        self._context, self._folder = context, folder
        self._started: list[ForkServerProcess] = []
        self._pipes: list[Connection] = []
        self._pids: list[int] = []

    def connect(self) -> None:
        """Make keys, start all processes, and wait until every site is in."""
        names = [f"site{i:02}" for i in range(self.sites)]
        keys.init(self._folder / "server", ["127.0.0.1"])
        for name in names:
            keys.sign(self._folder / "server", keys.request(self._folder / name, name))
            roster = self._folder / "server" / "roster"
            keys.install(self._folder / name, roster / f"{name}.crt", self._folder / "server" / "ca.crt")
        self.pid = self._start(processes.server, self._pipe(), self._folder, self.sites)
        self._start(processes.raw, self._pipe(), self.sites)
        address, port = (pipe.recv() for pipe in self._pipes)
        self._pids = [self._start(processes.site, name, self._folder, address, port) for name in names]
        assert [pipe.recv() for pipe in self._pipes] == [self.sites, self.sites]

    def prepare(self, size: int) -> None:
        """Let every site make its bytes."""
        self._pipes[0].send((size, True))
        self._pipes[0].recv()

    def exchange(self, size: int) -> float:
        """Seconds of one exchange."""
        self._pipes[0].send((size, False))
        return float(self._pipes[0].recv())

    def raw(self, size: int) -> float:
        """Seconds of one raw copy of the bytes that an exchange would carry."""
        self._pipes[1].send(size)
        return float(self._pipes[1].recv())

    def row(self, payload_mb: int, overhead_ms: float, idle_mb: float) -> dict[str, Any]:
        """Some rounds of one size."""
        size, total_mb = payload_mb * readings.MB, payload_mb * self.sites
        rounds = 1 if total_mb > 5000 else max(3, min(50, 1000 // total_mb))
        self.prepare(size)
        raw_s = statistics.median(self.raw(size) for _ in range(rounds))
        readings.forget_peak(self.pid)
        server_s, site_s = readings.cpu_s([self.pid]), readings.cpu_s(self._pids)
        walls, anonymous = [], 0.0
        for _ in range(rounds):
            self._pipes[0].send((size, False))
            while not self._pipes[0].poll(0.02):
                anonymous = max(anonymous, readings.memory(self.pid, "RssAnon")["RssAnon"])
            walls.append(self._pipes[0].recv())
        gb = rounds * total_mb / 1000
        goodput, raw_mb_s = total_mb / statistics.median(walls), total_mb / raw_s
        return {
            "transport": "fedpeft gRPC, mTLS",
            "sites": self.sites,
            "payload_mb": payload_mb,
            "goodput_mb_s": goodput,
            "overhead_ms": overhead_ms,
            "server_peak_mb": readings.memory(self.pid, "VmHWM")["VmHWM"] - idle_mb,
            "server_idle_mb": idle_mb,
            "server_anon_mb": anonymous,
            "raw_mb_s": raw_mb_s,
            "ratio_to_raw": goodput / raw_mb_s,
            "server_cpu_s_per_gb": (readings.cpu_s([self.pid]) - server_s) / gb,
            "site_cpu_s_per_gb": (readings.cpu_s(self._pids) - site_s) / gb,
            "rounds": rounds,
        }

    def end(self) -> None:
        """Let all processes end by themselves; end those that do not."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._started:
            process.join(20)
        for process in self._started:
            if process.is_alive():
                process.kill()

    def _pipe(self) -> Connection:
        mine, theirs = self._context.Pipe()
        self._pipes.append(mine)
        return theirs

    def _start(self, target: Any, *arguments: Any) -> int:
        process = self._context.Process(target=target, args=arguments, daemon=True)
        process.start()
        self._started.append(process)
        assert process.pid
        return process.pid
