"""The Flower app of the bench: one array of bytes from each node, pulled and dropped one by one."""

import json
import os
import statistics
import time
import zlib
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from simulations.bench_grpc import readings

SMALL, OVERHEAD_ROUNDS, ROUNDS = 1000, 5, 3
DEADLINE_S = 300.0

client, server = ClientApp(), ServerApp()


def send(message: Message, context: Context) -> Message:
    """Bytes of the size that is asked for, and the instant at which they were ready."""
    size = int(message.content["ask"]["size"])
    data = (os.urandom(min(size, readings.MB)) * (size // readings.MB + 1))[:size]
    array = ArrayRecord({"payload": Array("uint8", (size,), "bench", data)})
    return Message(RecordDict({"update": array, "ready": ConfigRecord({"at": time.time()})}), reply_to=message)


def main(grid: Grid, context: Context) -> None:
    """Rounds of a small size, then of each size of the run's config; a row for each goes to its file."""
    config = context.run_config
    nodes, link, around = int(config["nodes"]), int(config["link"]), json.loads(str(config["sites"]))
    while len(asked := list(grid.get_node_ids())) < nodes:
        time.sleep(0.1)
    own, idle = os.getpid(), {}
    for pid in (own, link):
        idle[pid] = readings.memory(pid, "VmRSS")
    overhead = 1000 * statistics.median(exchange(grid, asked, SMALL)[0] for _ in range(OVERHEAD_ROUNDS))
    for payload_mb in json.loads(str(config["sizes"])):
        for pid in idle:
            readings.forget_peak(pid)
        before = [readings.cpu_s(readings.family(pids)) for pids in ([link], around)]
        rounds = [exchange(grid, asked, payload_mb * readings.MB) for _ in range(ROUNDS)]
        after = [readings.cpu_s(readings.family(pids)) for pids in ([link], around)]
        peaks = [readings.memory(pid, "VmHWM") - idle[pid] for pid in (own, link)]
        gb = ROUNDS * nodes * payload_mb / 1000
        row = {
            "transport": str(config["transport"]),
            "sites": nodes,
            "payload_mb": payload_mb,
            "goodput_mb_s": nodes * payload_mb / statistics.median(wall for wall, _ in rounds),
            "overhead_ms": overhead,
            "server_peak_mb": sum(peaks),
            "moving_mb_s": nodes * payload_mb / statistics.median(moving for _, moving in rounds),
            "server_idle_mb": sum(idle.values()),
            "server_app_peak_mb": peaks[0],
            "server_cpu_s_per_gb": (after[0] - before[0]) / gb,
            "site_cpu_s_per_gb": (after[1] - before[1]) / gb,
            "rounds": ROUNDS,
        }
        with Path(str(config["out"])).open("a") as out:
            out.write(json.dumps(row) + "\n")


def exchange(grid: Grid, nodes: list[int], size: int) -> tuple[float, float]:
    """Seconds from pushing to the last reply, and from the instant at which the first reply was ready at its node."""
    began, ready = time.time(), float("inf")
    ask = RecordDict({"ask": ConfigRecord({"size": size})})
    messages = [Message(ask, dst_node_id=node, message_type="train") for node in nodes]
    owing = list(grid.push_messages(messages))
    while owing:
        assert time.time() - began < DEADLINE_S, f"{len(owing)} replies have not come"
        for name in list(owing):
            for reply in grid.pull_messages([name]):
                ended = time.time()
                owing.remove(name)
                data = reply.content["update"]["payload"].data
                ready = min(ready, float(reply.content["ready"]["at"]))
                zlib.crc32(data)
                assert len(data) == size
                assert data[-1] == data[(size - 1) % readings.MB]
                del reply, data
        time.sleep(0.02)
    return ended - began, ended - ready


client.train()(send)
server.main()(main)
