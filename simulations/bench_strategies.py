"""Merging at the speed of memory: CPU seconds and memory of Mean and TIES, beside what a user would otherwise call.

`python -m simulations.bench_strategies`: 8,388,608 parameters in 64 slots shaped like LoRA factors, 20 and 100 updates
of one weight, one thread. Every row is a process of its own, which makes its inputs, merges, and tells its CPU seconds
(the least of some runs) and the peak of its memory beyond the inputs. "plain read" adds all float32 inputs up, nothing
else. Ternary updates are bit planes of density 0.2; PEFT gets them written out as float32, which counts.
"decode + TIES" begins at payloads as they were sent. PEFT's and mergekit's `ties` trim by themselves, to the density of
our trims; DARE keeps as much of each slot at random, and its L1 norm, and takes the mean. mergekit is run by the Python
that FEDPEFT_MERGEKIT_PYTHON names, tensor by tensor on the same vectors, with a base model of zeros where it wants one.
"Mean, decoded each" and "Mean, summed, decoded once" begin at the parts of as many projections.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from fedpeft.strategies import DARE, TIES, Context, Fold, Mean, Strategy, Update
from fedpeft.strategies.planes import Trim
from simulations import by_mergekit, table

DENSITY = 0.2
COLUMNS = ("strategy", "implementation", "input", "n", "numel", "cpu_s", "wall_s", "peak_mb", "times_peft_speed",
           "times_mergekit_speed", "times_read_cpu", "times_each_speed")  # fmt: skip
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
    ("Mean", "mergekit", "fp32"),
    ("TIES, trimmed by the client", "fedpeft", "fp32"),
    ("TIES", "fedpeft", "fp32"),
    ("TIES", "peft", "fp32"),
    ("TIES", "mergekit", "fp32"),
    ("DARE", "fedpeft", "fp32"),
    ("DARE", "mergekit", "fp32"),
    ("Mean", "fedpeft", "ternary"),
    ("TIES, trimmed by the client", "fedpeft", "ternary"),
    ("decode + TIES", "fedpeft", "ternary"),
    ("TIES", "peft", "ternary"),
)
BY_MERGEKIT: dict[str, tuple[str, bool, dict[str, float | bool]]] = {
    "Mean": ("linear", False, {}),
    "TIES": ("ties", True, {"density": DENSITY}),
    "DARE": ("dare_linear", True, {"density": DENSITY, "normalize": True}),
}
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
    numel, numbers = (1 << 16, (5,)) if options.quick else (1 << 23, (20, 100))
    measured = [names for names in MEASURED if names[1] != "mergekit" or by_mergekit.VARIABLE in os.environ]
    rows = [row(Case(*names, n, numel, options.seed)) for n in numbers for names in measured]
    rows += [
        row(Case(how, "fedpeft", codec, numbers[0], numel, options.seed)) for codec in SKETCHES for how in (EACH, ONCE)
    ]
    if len(measured) < len(MEASURED):
        print(by_mergekit.ABSENT)
    rows = compared(rows)
    table.show(f"merging, {numel:,} parameters", rows, options, COLUMNS)
    table.save(rows, options)


def row(case: Case) -> dict[str, Any]:
    """A case, measured in a process of its own."""
    command = [sys.executable, "-m", "simulations.bench_strategies", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, env=os.environ | OFFLINE, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return asdict(case) | found


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of CPU seconds in one run: to PEFT's and mergekit's on the same updates, and to a plain read of them."""

    def cpu_s(strategy: str, implementation: str, kind: str, n: int) -> float | None:
        names = strategy, implementation, kind, n
        keys = ("strategy", "implementation", "input", "n")
        return next((float(r["cpu_s"]) for r in rows if tuple(r[k] for k in keys) == names), None)

    out = []
    for one in rows:
        rule = one["strategy"] if one["strategy"] in BY_MERGEKIT else "TIES"
        peft, mergekit = (cpu_s(rule, theirs, one["input"], one["n"]) for theirs in ("peft", "mergekit"))
        read = cpu_s("plain read", "torch", one["input"], one["n"])
        ours = one["implementation"] == "fedpeft"
        each = cpu_s(EACH, "fedpeft", one["input"], one["n"])
        out.append(one | {"times_peft_speed": peft / one["cpu_s"] if ours and peft else None,
                          "times_mergekit_speed": mergekit / one["cpu_s"] if ours and mergekit else None,
                          "times_read_cpu": one["cpu_s"] / read if read else None,
                          "times_each_speed": each / one["cpu_s"] if each else None})  # fmt: skip
    return out


def measure(case: Case) -> dict[str, float]:
    """What the fastest run of a case costs."""
    torch.set_num_threads(1)
    runs = 1 if case.implementation in ("peft", "flwr", "mergekit") and case.n > 20 else 3
    if case.implementation == "mergekit":
        method, base, parameters = BY_MERGEKIT[case.strategy]
        shapes = [slot.shape for slot in space_of(case.numel).slots]
        request = by_mergekit.Request(method, shapes, [1.0] * case.n, base, parameters, runs)
        return by_mergekit.ask(request, (x.numpy() for x in deltas(case)))[0]
    kernels.warm_up()
    prepare(Case(case.strategy, case.implementation, case.input, 3, 1 << 14, case.seed))()
    return by_mergekit.cost(prepare(case), runs)


def space_of(numel: int) -> Space:
    """64 slots, half of them (16, m) and half (m, 16)."""
    m = numel // 64 // 16
    shapes = [("lora_A", (16, m)), ("lora_B", (m, 16))]
    return Space(tuple(Slot(f"{i:02}.{role}", shape, role) for i in range(32) for role, shape in shapes))


def deltas(case: Case) -> Iterator[Tensor]:
    """Normal numbers, for each client the same ones elsewhere and of its own size."""
    base = torch.from_numpy(Stream(case.seed, Purpose.DATA).normal(case.numel)).float()
    return (base.roll(7919 * k).mul_(1 + k % 5 / 4) for k in range(case.n))


def prepare(case: Case) -> Callable[[], object]:
    """Make the inputs, and give what merges them."""
    space = space_of(case.numel)
    if case.input == "ternary":
        return over_planes(case, space)
    if case.input in SKETCHES:
        return over_sketches(case, space)
    given = list(deltas(case))
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
    rules: dict[str, Strategy] = {"Mean": Mean(), "DARE": DARE(Mean(), DENSITY, rescale="l1")}
    strategy = rules.get(case.strategy, TIES(DENSITY, trim=trim))
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
