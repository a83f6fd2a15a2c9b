"""Rows of the gRPC runtime, and of raw copies of the same bytes by the same processes."""

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from fedpeft import keys
from simulations.bench_grpc import readings

SMALL, OVERHEAD_ROUNDS = 1000, 30
TIMEOUT_S = 600.0


def rows(sites: int, sizes_mb: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each size, by as many sites."""
    with running(sites) as bench:
        idle = readings.memory(bench.server, "VmRSS"), readings.memory(bench.server, "RssAnon")
        bench.prepare(SMALL)
        overhead = 1000 * statistics.median(bench.exchange(SMALL)[0] for _ in range(OVERHEAD_ROUNDS))
        return [measured(bench, size, overhead, *idle) for size in sizes_mb]


def measured(
    bench: "Bench", payload_mb: int, overhead_ms: float, idle_mb: float, anonymous_mb: float
) -> dict[str, Any]:
    """Some rounds of one size, raw and over the runtime."""
    size, total_mb = payload_mb * readings.MB, payload_mb * bench.sites
    rounds = 1 if total_mb > 5000 else max(3, min(50, 1000 // total_mb))
    bench.prepare(size)
    raw_s = statistics.median(bench.raw(size) for _ in range(rounds))
    readings.forget_peak(bench.server)
    server_s, site_s, busy_s = readings.cpu_s([bench.server]), readings.cpu_s(bench.pids), readings.busy_s()
    told = [bench.exchange(size) for _ in range(rounds)]
    server_s, site_s = readings.cpu_s([bench.server]) - server_s, readings.cpu_s(bench.pids) - site_s
    busy_s, walls = readings.busy_s() - busy_s, [wall for wall, _ in told]
    goodput, raw_mb_s = total_mb / statistics.median(walls), total_mb / raw_s
    return {
        "transport": "fedpeft gRPC, mTLS",
        "sites": bench.sites,
        "payload_mb": payload_mb,
        "goodput_mb_s": goodput,
        "overhead_ms": overhead_ms,
        "server_peak_mb": readings.memory(bench.server, "VmHWM") - idle_mb,
        "server_idle_mb": idle_mb,
        "server_own_mb": max(own for _, own in told) - anonymous_mb,
        "raw_mb_s": raw_mb_s,
        "ratio_to_raw": goodput / raw_mb_s,
        "server_cpu_s_per_gb": 1000 * server_s / (rounds * total_mb),
        "site_cpu_s_per_gb": 1000 * site_s / (rounds * total_mb),
        "rounds": rounds,
        "others_cores": max(0.0, busy_s - server_s - site_s) / sum(walls),
    }


@contextmanager
def running(sites: int) -> Iterator["Bench"]:
    """A server, its sites and a receiver of raw copies, all connected."""
    with tempfile.TemporaryDirectory(prefix="bench-grpc-") as folder:
        bench = Bench(Path(folder), sites)
        try:
            bench.connect()
            yield bench
        finally:
            bench.end()


class Bench:
    """Asks a server process and a raw receiver for one transfer after the other.

    All processes are forks of one that has imported what they need, so 32 sites take the memory and the time of one
    import of torch.
    """

    def __init__(self, folder: Path, sites: int) -> None:
        self.sites, self.server, self.pids = sites, 0, list[int]()
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["simulations.bench_grpc.processes"])
        self._folder = folder
        self._started: list[ForkServerProcess] = []
        self._pipes: list[Connection] = []

    def connect(self) -> None:
        """Make keys, start all processes, and wait until every site is in."""
        names = [f"site{i:02}" for i in range(self.sites)]
        coordinator = self._folder / "server"
        keys.init(coordinator, ["127.0.0.1"])
        for name in names:
            keys.sign(coordinator, keys.request(self._folder / name, name))
            keys.install(self._folder / name, coordinator / "roster" / f"{name}.crt", coordinator / "ca.crt")
        self.server = self._start("server", self._pipe(), self._folder, self.sites)
        self._start("raw", self._pipe(), self.sites)
        address, port = self._told(0), self._told(1)
        self.pids = [self._start("site", name, self._folder, address, port) for name in names]
        assert (self._told(0), self._told(1)) == (self.sites, self.sites)

    def prepare(self, size: int) -> None:
        """Let every site make its bytes."""
        self._pipes[0].send((size, True))
        self._told(0)

    def exchange(self, size: int) -> tuple[float, float]:
        """Seconds of one exchange, and the largest anonymous memory of the server that was seen meanwhile."""
        self._pipes[0].send((size, False))
        own = 0.0
        while not self._pipes[0].poll(0.02):
            own = max(own, readings.memory(self.server, "RssAnon"))
        return float(self._told(0)), max(own, readings.memory(self.server, "RssAnon"))

    def raw(self, size: int) -> float:
        """Seconds of one raw copy of the bytes that an exchange would carry."""
        self._pipes[1].send(size)
        return float(self._told(1))

    def end(self) -> None:
        """Let all processes end by themselves, and end those that do not."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._started:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()

    def _told(self, which: int) -> Any:
        if not self._pipes[which].poll(TIMEOUT_S):
            raise RuntimeError(f"expected the {('server', 'raw receiver')[which]} to answer within {TIMEOUT_S:.0f} s")
        return self._pipes[which].recv()

    def _pipe(self) -> Connection:
        mine, theirs = self._context.Pipe()
        self._pipes.append(mine)
        return theirs

    def _start(self, role: str, *arguments: object) -> int:
        process = self._context.Process(target=_run, args=(role, *arguments), daemon=True)
        process.start()
        self._started.append(process)
        assert process.pid
        return process.pid


def _run(role: str, *arguments: Any) -> None:
    """In a process of its own, where the import is done already."""
    from simulations.bench_grpc import processes

    getattr(processes, role)(*arguments)
