"""Memory and processor time of processes, as the kernel tells them."""

import os
from collections.abc import Iterable
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MB = 1_000_000


def memory(pid: int, name: str) -> float:
    """A line of /proc/PID/status in MB (10^6 bytes): VmRSS, VmHWM (the peak since `forget_peak`) or RssAnon."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / MB


def forget_peak(pid: int) -> None:
    """Let the peak of the resident memory start anew from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of user and system time that these processes, and children that they have waited for, have used."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total * TICK_S


def busy_s() -> float:
    """Seconds that all cores together have worked since the machine started."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) * TICK_S


def family(pids: Iterable[int]) -> set[int]:
    """These processes with their living descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = set(pids) & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
