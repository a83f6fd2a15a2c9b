"""mergekit's own functions on vectors of ours, run by an interpreter that has mergekit: FEDPEFT_MERGEKIT_PYTHON.

Its requirements need not fit ours, so it is never imported here. That interpreter runs this very file: a request is
its argument, the vectors come through its standard input, and what it found leaves through its standard output.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "FEDPEFT_MERGEKIT_PYTHON"
ABSENT = (
    f"mergekit is left out: set {VARIABLE} to a Python that has it "
    "(python -m venv mk; mk/bin/pip install mergekit; mk/bin/python)"
)


@dataclass(frozen=True)
class Request:
    """What mergekit shall do.

    Args:
        method: its name for a merge method.
        shapes: of the tensors that a vector is cut into, in order.
        weights: of each vector.
        base: whether the method takes a base model; it gets zeros.
        parameters: of the method, the same for all vectors.
        runs: how often it is timed.
        merged: whether the merged vector is wanted too.
    """

    method: str
    shapes: Sequence[Sequence[int]]
    weights: Sequence[float]
    base: bool
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    runs: int = 1
    merged: bool = False


def ask(request: Request, vectors: Iterable[NDArray[np.float32]]) -> tuple[dict[str, float], NDArray[np.float32]]:
    """What a merge of vectors by mergekit costs, as `cost` has it, and the merged vector, empty where not wanted.

    Raises:
        KeyError: no interpreter is named.
        CalledProcessError: it failed; its own output says why.
    """
    command = [os.environ[VARIABLE], "-I", __file__, json.dumps(asdict(request))]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=threads, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for vector in vectors:
            process.stdin.write(vector.tobytes())
        process.stdin.close()
        answer = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    found, _, merged = answer.partition(b"\n")
    return json.loads(found), np.frombuffer(merged, np.float32)


def cost(work: Callable[[], object], runs: int) -> dict[str, float]:
    """CPU and wall seconds of the fastest run, and the peak of memory in MB beyond what was there before."""
    Path("/proc/self/clear_refs").write_text("5")
    before, found = _resident_mb("VmRSS"), []
    for _ in range(runs):
        began = time.process_time(), time.perf_counter()
        work()
        found.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    cpu_s, wall_s = min(found)
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": _resident_mb("VmHWM") - before}


def _resident_mb(name: str) -> float:
    """This process's memory in MB, now ("VmRSS") or at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024e-6 for line in lines if line.startswith(name))


def _main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    torch, mergekit = import_module("torch"), import_module("mergekit.merge_methods.api")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = [math.prod(shape) for shape in request.shapes]
    read = sys.stdin.buffer.read
    rows = [torch.frombuffer(bytearray(read(4 * sum(sizes))), dtype=torch.float32) for _ in request.weights]
    if request.base:
        rows.insert(0, torch.zeros(sum(sizes)))
    ids = range(len(rows))
    weights = dict(zip(ids[int(request.base) :], request.weights, strict=True))

    def merge(row_parts: Sequence[Any]) -> Any:
        return mergekit.merge_tensors(
            row_parts, request.method, ids=ids, base_index=0 if request.base else None,
            parameters={**request.parameters, "weight": weights},
        )  # fmt: skip

    def work() -> list[Any]:
        parts = zip(*(row.split(sizes) for row in rows), strict=True)
        return [
            merge([part.view(*shape) for part in of_all]) for of_all, shape in zip(parts, request.shapes, strict=True)
        ]

    merge([row[:64] for row in rows])
    found = cost(work, request.runs)
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
    if request.merged:
        sys.stdout.buffer.write(torch.cat([part.reshape(-1) for part in work()]).numpy().tobytes())


if __name__ == "__main__":
    _main()
