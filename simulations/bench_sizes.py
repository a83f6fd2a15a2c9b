"""What a codec costs a parameter, from ten thousand parameters to a thousand million: time and memory, both ways.

`python -m simulations.bench_sizes`: normal numbers in slots of at most a million, each size and codec in a process of
its own; encode and decode are codec and wire. "encode_ns" and "decode_ns" are CPU time of one core for a parameter, and
"encode_beyond" and "decode_beyond" the peak of memory over what was there before, the delta included, as multiples of
the delta; what a decode ends in is one of them. The largest size takes 14 GB of memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedpeft import codecs, kernels, wire
from fedpeft.codecs import Codec, Context
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from simulations import table

EXPRESSIONS = (
    "Identity('float16')",
    "Uniform(bits=4)",
    "QSGD(levels=4)",
    "Block4('nf4')",
    "DeadZone(bits=1.0)",
    "Rotated(bits=1)",
    "Ternary(density=0.2)",
    "TopK(density=0.03)",
    "chain(DCT(64), TopK(density=0.1))",
    "RandomMask(density=0.1)",
    "MagnitudeMask()",
    "PublicSupport(density=0.1)",
    "LowRank(rank=1)",
    "PowerSGD(rank=1)",
    "LogByte()",
    "SRHT(coordinates=4096)",
    "Ferret(coordinates=256)",
)
SLOW = ("Ternary(density=0.2, context=True)", "Budget(share=32)")  # below 0.2 GB/s, and not for the largest size
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
COLUMNS = ("codec", "numel", "encode_ns", "decode_ns", "bits_per_param", "encode_beyond", "decode_beyond")
_BLOCK = 1_000_000
T = TypeVar("T")


def main() -> None:
    """Measure and print, or measure one case where `--case` names it."""
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), options.seed)))
        return
    cases = [(codec, size) for codec in EXPRESSIONS for size in SIZES] + [(c, n) for c in SLOW for n in SIZES[:-1]]
    if options.quick:
        cases = [("Ternary(density=0.2)", size) for size in SIZES[:2]]
    rows = [row(codec, size, options.seed) for codec, size in cases]
    table.show("a parameter's cost, by size", rows, options, COLUMNS)
    table.save(rows, options)


def row(codec: str, numel: int, seed: int) -> dict[str, Any]:
    """A case, measured in a process of its own."""
    command = [sys.executable, "-m", "simulations.bench_sizes", "--seed", str(seed), "--case", codec, str(numel)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(expression: str, numel: int, seed: int) -> dict[str, Any]:
    """Encode and decode once to warm up, small, and then what is measured."""
    torch.set_num_threads(1)
    kernels.warm_up()
    codec = codecs.parse(expression.replace("share=32", str(max(1000, numel // 8))))
    assert isinstance(codec, Codec)
    there_and_back(codec, *problem(10_000, seed), 1)
    return {"codec": expression, "numel": numel} | there_and_back(codec, *problem(numel, seed), 10_000_000 // numel)


def there_and_back(codec: Codec, space: Space, delta: torch.Tensor, repeats: int) -> dict[str, float]:
    """Both ways, as often as it takes to be timed."""
    ctx, layout = Context(round=1, client=1), codec.layout(space)
    header = wire.Header(space.fingerprint, bytes(16), 1, 1, repr(codec), space.numel)
    encode_s, encode_beyond, payload = costs(lambda: wire.pack(header, codec.encode(delta, space, ctx)), repeats)
    decode_s, decode_beyond, _ = costs(lambda: codec.decode(wire.unpack(payload, header, layout), space, ctx), repeats)
    return {
        "encode_ns": 1e9 * encode_s / space.numel,
        "decode_ns": 1e9 * decode_s / space.numel,
        "bits_per_param": 8 * len(payload) / space.numel,
        "encode_beyond": encode_beyond / (4 * space.numel),
        "decode_beyond": decode_beyond / (4 * space.numel),
    }


def costs(work: Callable[[], T], repeats: int) -> tuple[float, int, T]:
    """CPU seconds of one of many runs, the peak of memory beyond what was there, in bytes, and what came of it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = memory("VmRSS"), time.process_time()
    done = work()
    for _ in range(1, repeats):
        done = work()
    return (time.process_time() - began) / max(1, repeats), memory("VmHWM") - before, done


def memory(name: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def problem(numel: int, seed: int) -> tuple[Space, torch.Tensor]:
    """A space of slots of at most a million, and normal numbers for it, whose spread differs from slot to slot."""
    slots, delta = [], torch.empty(numel)
    normal = torch.from_numpy(Stream(seed, Purpose.DATA).normal(min(numel, _BLOCK))).float()
    for i, begin in enumerate(range(0, numel, _BLOCK)):
        size = min(_BLOCK, numel - begin)
        delta[begin : begin + size] = normal[:size] * (1 + i % 7)
        slots.append(Slot(f"{i:04}.lora_A", (size // 100, 100), "lora_A"))
    return Space(tuple(slots)), delta


if __name__ == "__main__":
    main()
