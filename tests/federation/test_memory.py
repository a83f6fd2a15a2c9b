"""A server folds one update at a time: its memory does not grow with the number of sites."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
import torch
from fedpeft.codecs import Identity
from fedpeft.federation import Client, ClientStore, Journal, Plan, Server
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.space import Slot, Space
from fedpeft.training import Encoded, Trained

folder, sites = Path(sys.argv[1]), int(sys.argv[2])
space = Space((Slot("a", (2_000_000,), "lora_A"),))

class Nudge:
    def train(self, jobs):
        for job in jobs:
            yield Trained(job.start + 1e-3, {})

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3

handlers = {
    f"site-{i:02}": Client(Nudge(), Encoded(((1,),), (0,), (0,)), space, ClientStore(folder / str(i), space))
    for i in range(sites)
}
with Journal(folder / "journal") as journal:
    plan = Plan(rounds=2, codec=Identity(), broadcast=Identity("float16"))
    server = Server(plan, space, torch.zeros(space.numel), MemoryTransport(handlers), journal)
    rounds = server.run()
    next(rounds)
    open("/proc/self/clear_refs", "w").write("5")
    assert next(rounds)["counted"] == sites
    print(peak())
"""


def peak_mb(folder: Path, sites: int) -> float:
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, folder, str(sites)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


def test_peak_memory_does_not_depend_on_the_number_of_sites(tmp_path: Path) -> None:
    """The least of a few measurements: what else the allocator holds at an instant can only add to one.

    Ten sites are enough for its heap to be as scattered as it gets.
    """
    limit_mb, growth_mb = 12 * 4 * 2_000_000 / 1e6 / 4, []
    for attempt in range(4):
        few, many = peak_mb(tmp_path / f"few-{attempt}", 10), peak_mb(tmp_path / f"many-{attempt}", 22)
        growth_mb.append(many - few)
        if growth_mb[-1] < limit_mb:
            return
    raise AssertionError(f"12 more sites took {growth_mb} MB more, expected less than {limit_mb}")
