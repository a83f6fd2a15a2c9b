"""What encoding costs a parameter, from ten thousand parameters to a thousand million: time and memory.

`python -m simulations.bench_sizes`: normal numbers in slots of at most a million, each size and codec in a process of
its own; encode is codec and wire. "ns_per_param" is CPU time of one core, and "beyond_delta" the peak of memory over
what was there with the delta, as a multiple of the delta. The largest size takes 10 GB of memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from fedpeft import codecs, kernels, wire
from fedpeft.codecs import Codec, Context
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from simulations import table

EXPRESSIONS = ("Ternary(density=0.2)", "Rotated(bits=1)", "DeadZone(bits=1.0)", "TopK(density=0.03)", "Uniform(bits=4)")
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
COLUMNS = ("codec", "numel", "ns_per_param", "bits_per_param", "beyond_delta")
_BLOCK = 1_000_000


def main() -> None:
    """Measure and print, or measure one case where `--case` names it."""
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), options.seed)))
        return
    expressions, sizes = (EXPRESSIONS[:1], SIZES[:2]) if options.quick else (EXPRESSIONS, SIZES)
    rows = [row(codec, size, options.seed) for codec in expressions for size in sizes]
    table.show("encode by size", rows, options, COLUMNS)
    table.save(rows, options)


def row(codec: str, numel: int, seed: int) -> dict[str, Any]:
    """A case, measured in a process of its own."""
    command = [sys.executable, "-m", "simulations.bench_sizes", "--seed", str(seed), "--case", codec, str(numel)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(expression: str, numel: int, seed: int) -> dict[str, Any]:
    """Encode once to warm up, small, and then what is measured."""
    torch.set_num_threads(1)
    kernels.warm_up()
    codec = codecs.parse(expression)
    assert isinstance(codec, Codec)
    encoded(codec, *problem(10_000, seed))
    space, delta = problem(numel, seed)
    repeats = max(1, 10_000_000 // numel)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(repeats):
        size = encoded(codec, space, delta)
    seconds = (time.process_time() - began) / repeats
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "codec": expression,
        "numel": numel,
        "ns_per_param": 1e9 * seconds / numel,
        "bits_per_param": 8 * size / numel,
        "beyond_delta": peak / (4 * numel),
    }


def problem(numel: int, seed: int) -> tuple[Space, torch.Tensor]:
    """A space of slots of at most a million, and normal numbers for it, whose spread differs from slot to slot."""
    slots, delta = [], torch.empty(numel)
    normal = torch.from_numpy(Stream(seed, Purpose.DATA).normal(min(numel, _BLOCK))).float()
    for i, begin in enumerate(range(0, numel, _BLOCK)):
        size = min(_BLOCK, numel - begin)
        delta[begin : begin + size] = normal[:size] * (1 + i % 7)
        slots.append(Slot(f"{i:04}.lora_A", (size // 100, 100), "lora_A"))
    return Space(tuple(slots)), delta


def encoded(codec: Codec, space: Space, delta: torch.Tensor) -> int:
    """Bytes of a delta's payload."""
    ctx = Context(round=1, client=1)
    header = wire.Header(space.fingerprint, bytes(16), 1, 1, repr(codec), space.numel)
    return len(wire.pack(header, codec.encode(delta, space, ctx)))


if __name__ == "__main__":
    main()
