"""The loops that codecs and strategies stand on, beside what the memory allows.

`python -m simulations.bench_kernels`: 8,388,608 parameters (SRHT: 16,777,216), one core, CPU seconds, best of several.
GB/s are of the float32 numbers that an update stands for: 4 bytes a parameter, and for a fold a parameter of each of
its updates. `times` is how many times what stands in `against` a row takes, in the same run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fedpeft import codecs, kernels
from fedpeft.codecs import SRHT, Codec, Ternary
from fedpeft.codecs import Context as Sender
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from fedpeft.strategies import TIES, Context, Mean, Update
from fedpeft.ternary import TernaryDelta
from simulations import table
from simulations.bench_codecs import keep_memory
from simulations.bench_wire import timed

COLUMNS = ("loop", "numel", "cpu_s", "gbps", "times", "against")
_BLOCK, _SENDERS = 1 << 16, 32


def main() -> None:
    """Measure and print."""
    options = table.arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    keep_memory()
    kernels.warm_up()
    numel, repeats = (1 << 18, 2) if options.quick else (1 << 23, 5)
    rows = [*moved(numel, repeats), *rotated(numel, repeats), *folded(numel, repeats), *projected(2 * numel, repeats)]
    for row in rows:
        if against := next((other for other in rows if other["loop"] == row.get("against")), None):
            row["times"] = row["cpu_s"] / against["cpu_s"]
    table.show("loops", rows, options, COLUMNS)
    table.save(rows, options)


def line(
    loop: str, numel: int, work: Callable[[], Any], repeats: int, updates: int = 1, against: str = ""
) -> dict[str, Any]:
    """A row."""
    seconds, _ = timed(work, repeats)
    found = {"loop": loop, "numel": numel, "cpu_s": seconds, "gbps": 4e-9 * numel * updates / seconds}
    return found | ({"against": against} if against else {})


def problem(numel: int) -> tuple[Space, torch.Tensor]:
    """Slots of 65,536 normal numbers."""
    slots = tuple(Slot(f"{i}.lora_A", (16, _BLOCK // 16), "lora_A") for i in range(numel // _BLOCK))
    return Space(slots), torch.from_numpy(Stream(0, Purpose.DATA).normal(numel)).float()


def moved(numel: int, repeats: int) -> list[dict[str, Any]]:
    """What the memory allows."""
    x, out = problem(numel)[1].numpy(), np.empty(numel, np.float32)
    return [
        line("read", numel, lambda: float(x.sum()), repeats),
        line("copy", numel, lambda: np.copyto(out, x), repeats),
    ]


def rotated(numel: int, repeats: int) -> list[dict[str, Any]]:
    """One Hadamard transform in blocks, and the codec that stands on it."""
    (space, delta), ctx = problem(numel), Sender(round=1, client=1)
    x, edges = delta.numpy().copy(), np.arange(0, numel + 1, _BLOCK)
    rows = [line("Hadamard", numel, lambda: kernels.walsh_hadamard(x, edges), repeats, against="copy")]
    for bits in (1, 2, 4):
        codec = codecs.parse(f"Rotated(bits={bits})")
        assert isinstance(codec, Codec)
        parts = codec.encode(delta, space, ctx)
        for way, work in (
            ("encode", lambda codec=codec: codec.encode(delta, space, ctx)),
            ("decode", lambda codec=codec, parts=parts: codec.decode(parts, space, ctx)),
        ):
            rows.append(line(f"{codec} {way}", numel, work, repeats, against="Hadamard"))
    return rows


def folded(numel: int, repeats: int) -> list[dict[str, Any]]:
    """Ternary planes summed and voted on without being written out, and the same of float32."""
    (space, delta), codec = problem(numel), Ternary(0.2)
    given = [torch.roll(delta, 64 * k) for k in range(_SENDERS)]
    senders = [Sender(round=1, client=k) for k in range(_SENDERS)]
    planes = [codec.planes(codec.encode(x, space, to), space, to) for x, to in zip(given, senders, strict=True)]
    rows = []
    kinds: dict[str, Sequence[torch.Tensor | TernaryDelta]] = {"float32": given, "planes": planes}
    for kind, deltas in kinds.items():
        updates = [Update(delta, float(1 + k)) for k, delta in enumerate(deltas)]
        for rule in (Mean(), TIES(trim="none")):
            work = lambda rule=rule, updates=updates: rule.merge(updates, Context(space))  # noqa: E731
            rows.append(line(f"{rule} of {_SENDERS}, {kind}", numel, work, repeats, _SENDERS))
    return rows


def projected(numel: int, repeats: int) -> list[dict[str, Any]]:
    """A subsampled Hadamard transform to 4,096 numbers and back."""
    (space, delta), codec, ctx = problem(numel), SRHT(4096), Sender(round=1, client=1)
    parts = codec.encode(delta, space, ctx)
    return [
        line(f"{codec} encode", numel, lambda: codec.encode(delta, space, ctx), repeats),
        line(f"{codec} decode", numel, lambda: codec.decode(parts, space, ctx), repeats),
    ]


if __name__ == "__main__":
    main()
