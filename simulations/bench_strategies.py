"""Merging at the speed of memory: CPU seconds and memory of Mean and TIES, beside what a user would otherwise call.

`python -m simulations.bench_strategies`: 8,388,608 parameters in 64 slots shaped like LoRA factors, 20 and 100 updates
of one weight, one thread. Every row is a process of its own, which makes its inputs, merges, and tells its CPU seconds
(the least of some runs) and the peak of its memory beyond the inputs. "plain read" adds all float32 inputs up, nothing
else. Ternary updates are bit planes of density 0.2; PEFT gets them written out as float32, which counts.
"decode + TIES" begins at payloads as they were sent. PEFT's `ties` trims by itself, to the density of our trims.
"Mean, decoded each" and "Mean, summed, decoded once" begin at the parts of as many projections.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpeft import kernels, wire
from fedpeft.codecs import SRHT, Ferret, Parts, Ternary
from fedpeft.codecs import Context as Sender
from fedpeft.federation.pools import Pools
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Fold, Mean, Update
from fedpeft.strategies.planes import Trim
from simulations import table

DENSITY = 0.2
COLUMNS = ("strategy", "implementation", "input", "n", "numel", "cpu_s", "wall_s", "peak_mb", "times_peft_speed",
           "times_read_cpu", "times_each_speed")  # fmt: skip
OFFLINE = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@dataclass(frozen=True)
class Case:
    """What a row measures."""

    strategy: str
    implementation: str
    input: str
    n: int
    numel: int
    seed: int


MEASURED = (
    ("plain read", "torch", "fp32"),
    ("Mean", "fedpeft", "fp32"),
    ("Mean", "peft", "fp32"),
    ("Mean", "flwr", "fp32"),
    ("TIES, trimmed by the client", "fedpeft", "fp32"),
    ("TIES", "fedpeft", "fp32"),
    ("TIES", "peft", "fp32"),
    ("Mean", "fedpeft", "ternary"),
    ("TIES, trimmed by the client", "fedpeft", "ternary"),
    ("decode + TIES", "fedpeft", "ternary"),
    ("TIES", "peft", "ternary"),
)
SKETCHES = {"SRHT(4096)": SRHT(4096), "Ferret(512)": Ferret(512), "Ferret(4096)": Ferret(4096)}
EACH, ONCE = "Mean, decoded each", "Mean, summed, decoded once"


def main() -> None:
    """Measure and print, or measure one case where `--case` names it."""
    parser = table.arguments(__doc__ or "")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    numel, numbers = (1 << 16, (5, 20)) if options.quick else (1 << 23, (20, 100))
    rows = [row(Case(*names, n, numel, options.seed)) for n in numbers for names in MEASURED]
    rows += [
        row(Case(how, "fedpeft", codec, numbers[0], numel, options.seed)) for codec in SKETCHES for how in (EACH, ONCE)
    ]
    if find_spec("mergekit") is None:
        print("mergekit is not installed: it is left out")
    table.show(f"merging, {numel:,} parameters", compared(rows), options, COLUMNS)


def row(case: Case) -> dict[str, Any]:
    """A case, measured in a process of its own."""
    command = [sys.executable, "-m", "simulations.bench_strategies", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, env=os.environ | OFFLINE, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return asdict(case) | found


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of CPU seconds in one run: to PEFT's on the same updates, and to a plain read of them."""

    def cpu_s(strategy: str, implementation: str, kind: str, n: int) -> float | None:
        names = strategy, implementation, kind, n
        keys = ("strategy", "implementation", "input", "n")
        return next((float(r["cpu_s"]) for r in rows if tuple(r[k] for k in keys) == names), None)

    out = []
    for one in rows:
        peft = cpu_s("Mean" if one["strategy"] == "Mean" else "TIES", "peft", one["input"], one["n"])
        read = cpu_s("plain read", "torch", one["input"], one["n"])
        ours = one["implementation"] == "fedpeft"
        each = cpu_s(EACH, "fedpeft", one["input"], one["n"])
        out.append(one | {"times_peft_speed": peft / one["cpu_s"] if ours and peft else None,
                          "times_read_cpu": one["cpu_s"] / read if read else None,
                          "times_each_speed": each / one["cpu_s"] if each else None})  # fmt: skip
    return out


def measure(case: Case) -> dict[str, Any]:
    """CPU and wall seconds of the fastest run, and the peak of memory beyond the inputs."""
    torch.set_num_threads(1)
    kernels.warm_up()
    prepare(Case(case.strategy, case.implementation, case.input, 3, 1 << 14, case.seed))()
    work = prepare(case)
    Path("/proc/self/clear_refs").write_text("5")
    before, found = resident_mb("VmRSS"), []
    for _ in range(1 if case.implementation in ("peft", "flwr") and case.n > 20 else 3):
        began = time.process_time(), time.perf_counter()
        work()
        found.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    cpu_s, wall_s = min(found)
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": resident_mb("VmHWM") - before}


def resident_mb(name: str) -> float:
    """This process's memory in MB, now ("VmRSS") or at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024e-6 for line in lines if line.startswith(name))


def space_of(numel: int) -> Space:
    """64 slots, half of them (16, m) and half (m, 16)."""
    m = numel // 64 // 16
    shapes = [("lora_A", (16, m)), ("lora_B", (m, 16))]
    return Space(tuple(Slot(f"{i:02}.{role}", shape, role) for i in range(32) for role, shape in shapes))


def deltas(case: Case) -> list[Tensor]:
    """Normal numbers, for each client the same ones elsewhere and of its own size."""
    base = torch.from_numpy(Stream(case.seed, Purpose.DATA).normal(case.numel)).float()
    return [base.roll(7919 * k).mul_(1 + k % 5 / 4) for k in range(case.n)]


def prepare(case: Case) -> Callable[[], object]:
    """Make the inputs, and give what merges them."""
    space = space_of(case.numel)
    if case.input == "ternary":
        return over_planes(case, space)
    if case.input in SKETCHES:
        return over_sketches(case, space)
    given = deltas(case)
    if case.implementation == "fedpeft":
        if "by the client" in case.strategy:
            trim = Trim(DENSITY, space.bounds)
            given = [torch.from_numpy(trim.of_dense(x.numpy())) for x in given]
        return ours(case, [Update(x) for x in given], space)
    match case.implementation, case.strategy:
        case "torch", _:
            return lambda: [x.sum() for x in given]
        case "flwr", _:
            return flwr_mean(given, space)
        case _, strategy:
            return lambda: by_peft(strategy, given, space)


def over_planes(case: Case, space: Space) -> Callable[[], object]:
    """The same for ternary updates."""
    codec, sender = Ternary(DENSITY), Sender()
    header = wire.Header(space.fingerprint, bytes(16), 1, 1, repr(codec), space.numel)
    encoded = (codec.encode(x, space, sender) for x in deltas(case))
    if case.strategy.startswith("decode"):
        payloads = [wire.pack(header, parts) for parts in encoded]

        def parts_of(payload: bytes) -> Parts:
            return wire.unpack(payload, header, codec.layout(space))

        return lambda: TIES(DENSITY, trim="none").merge(
            [Update(codec.planes(parts_of(payload), space, sender)) for payload in payloads], Context(space)
        )
    cohort = [Update(codec.planes(parts, space, sender)) for parts in encoded]
    if case.implementation == "peft":
        return lambda: by_peft(case.strategy, [update.delta for update in cohort], space)
    return ours(case, cohort, space)


def over_sketches(case: Case, space: Space) -> Callable[[], object]:
    """The mean of what was projected, one update at a time, or of the products before they are decoded."""
    codec = SKETCHES[case.input]
    senders = [Sender(case.seed, 1, k) for k in range(1, case.n + 1)]
    sent = [(sender, codec.encode(x, space, sender)) for sender, x in zip(senders, deltas(case), strict=True)]

    def each() -> object:
        fold = Fold(Mean(), Context(space))
        for sender, parts in sent:
            fold.accumulate(Update(codec.decode(parts, space, sender)))
        return fold.finalize()

    def once() -> object:
        pools = Pools()
        for sender, parts in sent:
            sketch = codec.sketch(space, sender)
            pools.add(sketch, sketch.values(parts), 1.0)
        return Mean().merge(pools, Context(space))

    return each if case.strategy == EACH else once


def ours(case: Case, cohort: Sequence[Update], space: Space) -> Callable[[], object]:
    """The strategy that a case names."""
    trim: Any = "none" if "by the client" in case.strategy else "slot"
    strategy = Mean() if case.strategy == "Mean" else TIES(DENSITY, trim=trim)
    return lambda: strategy.merge(cohort, Context(space))


def by_peft(strategy: str, given: Sequence[Tensor], space: Space) -> list[Tensor]:
    """PEFT's functions, tensor by tensor, as `add_weighted_adapter` calls them."""
    from peft.utils import merge_utils

    merged, n = [], len(given)
    for slot in space.slots:
        tensors = [space.view(x, slot.name) for x in given]
        if strategy == "Mean":
            merged.append(merge_utils.task_arithmetic(tensors, torch.full((n,), 1 / n)))
        else:
            merged.append(merge_utils.ties(tensors, torch.ones(n), DENSITY))
    return merged


def flwr_mean(given: list[Tensor], space: Space) -> Callable[[], object]:
    """What Flower's FedAvg does with its replies; their arrays are bytes, and only these are held."""
    from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    records = []
    while given:
        views = space.tensors(given.pop(0))
        arrays = ArrayRecord({name: Array(np.ascontiguousarray(view.numpy())) for name, view in views.items()})
        records.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"examples": 1})}))
    return lambda: aggregate_arrayrecords(records, "examples")


if __name__ == "__main__":
    main()
