"""Every codec on real deltas: bits against their floor, error, and speed, beside what a user would otherwise call.

`python -m simulations.bench_codecs`: a LoRA that was trained elsewhere (needs `FEDPEFT_DATA`), the delta of one site's
round in the demo, and 8 M normal numbers in slots of 64 k for the speed at size. Encode is codec and wire, decode is
wire and codec to a dense float32 vector; GB/s of float32, one core, CPU time, best of several. The floor is the
order-0 entropy of what is sent: of masks and signs, of levels; plain numbers count as they are.

Memory that is freed is kept for the next decode, as a server's is: the kernel zeroes new pages before they are
written, which can take longer than a decode. The last rows say what a dense output leaves: 4 bytes a parameter written
once, into memory that is held and into new memory. `PowerSGD` is in its first round, whose directions are random.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import zstandard
from jaxtyping import Float
from torch import Tensor

from fedpeft import codecs, kernels, wire
from fedpeft.codecs import Codec, Context, Numbers, Parts, Plane, Symbols
from fedpeft.config import load
from fedpeft.preparation import prepare
from fedpeft.random import Purpose, Stream
from fedpeft.simulation import partition
from fedpeft.space import Slot, Space
from fedpeft.training import Job
from simulations import table
from simulations.bench_wire import timed

EXPRESSIONS = (
    "Identity()",
    "Identity('float16')",
    "Uniform(bits=8)",
    "Uniform(bits=4)",
    "Uniform(bits=4, stochastic=True)",
    "QSGD(levels=4)",
    "Block4('nf4')",
    "Block4('e3m0')",
    "DeadZone(bits=4.0, scale='mean')",
    "DeadZone(bits=3.0, scale='mean')",
    "DeadZone(bits=2.0, scale='mean')",
    "DeadZone(bits=1.0, scale='mean')",
    *(f"Rotated(bits={bits}, scale='mean')" for bits in (4, 2, 1)),
    *(f"Ternary(density={density})" for density in (0.5, 0.2, 0.1, 0.05, 0.01)),
    *(f"Ternary(density={density}, context=True)" for density in (0.5, 0.2, 0.1, 0.05, 0.01)),
    "TopK(density=0.1)",
    "TopK(density=0.03)",
    "TopK(density=0.01, bits=1, chunk=None)",
    "chain(DCT(64), TopK(density=0.1))",
    "RandomMask(density=0.1)",
    "MagnitudeMask()",
    "PublicSupport(density=0.1)",
    "LowRank(rank=4)",
    "LowRank(rank=1)",
    "PowerSGD(rank=4)",
    "PowerSGD(rank=1)",
    "LogByte()",
    "SRHT(density=0.01)",
    "SRHT(density=0.01, dtype='logbyte')",
    "Ferret(coordinates=256)",
)
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of <malloc.h>
SHARES = (16, 32, 64, 128)  # of fp32, for `Budget`
COLUMNS = ("input", "coder", "density", "bits_per_param", "floor_bits_per_param", "relative_error", "encode_gbps",
           "decode_gbps")  # fmt: skip


def keep_memory() -> None:
    """Let glibc give back nothing, however large (mallopt(3)); another C library does as it does."""
    with suppress(AttributeError, OSError):
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 1 << 30)


def main() -> None:
    """Measure and print."""
    options = table.arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    keep_memory()
    kernels.warm_up()
    rows = []
    for name, space, delta, repeats in inputs(options.quick, options.seed):
        expressions = [*EXPRESSIONS, *(f"Budget({4 * space.numel // share}, scale='mean')" for share in SHARES)]
        for expression in expressions:
            codec = codecs.parse(expression)
            assert isinstance(codec, Codec)
            rows.append({"input": name, **ours(expression, codec, delta, space, repeats)})
        rows += [{"input": name, **row} for row in [*others(delta, space, repeats), *fills(space.numel, repeats)]]
    table.show("codecs", rows, options, COLUMNS)
    table.save(rows, options)


def inputs(quick: bool, seed: int) -> Iterator[tuple[str, Space, Float[Tensor, " d"], int]]:
    """Name, space, delta, and how often it is timed."""
    folder = Path(os.environ.get("FEDPEFT_DATA", "")) / "lora_gptneo125m_movies"
    if os.environ.get("FEDPEFT_DATA") and folder.exists():
        (path,) = folder.glob("*.safetensors")
        tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
        roles = {name: next((role for role in ("lora_A", "lora_B") if role in name), "head") for name in tensors}
        space = Space(tuple(Slot(name, tuple(tensor.shape), roles[name]) for name, tensor in tensors.items()))
        yield "LoRA of GPT-Neo-125M", space, space.flatten(tensors), 3 if quick else 7
    else:
        print("FEDPEFT_DATA is not set: the LoRA that was trained elsewhere is left out")
    if not quick:
        yield "a round of the demo", *demo(), 7
    numel, width = (1 << 18 if quick else 1 << 23), 1 << 16
    slots = (Slot(f"{i}.lora_A", (16, width // 16), "lora_A") for i in range(numel // width))
    normal = torch.from_numpy(Stream(seed, Purpose.DATA).normal(numel)).float()
    yield f"{numel:,} normal numbers", Space(tuple(slots)), normal, 2 if quick else 3


def demo() -> tuple[Space, Float[Tensor, " d"]]:
    """What the first site of the demo changes in its first round."""
    experiment = load(None, [])
    known, settings = experiment.data, experiment.plan().settings
    prepared = prepare(experiment.model, experiment.peft, known.source, known.labels, experiment.seed)
    indices = partition(experiment, prepared)[0]
    data = prepared.trainer.encode([prepared.train[i] for i in indices])
    start = prepared.trainer.adapted.read()
    order, dropout = (Stream(experiment.seed, purpose, 1, 1) for purpose in (Purpose.DATA, Purpose.DROPOUT))
    trained = next(iter(prepared.trainer.train([Job(start, data, settings, order, dropout)])))
    return prepared.space, trained.vector.cpu() - start


def ours(name: str, codec: Codec, x: Float[Tensor, " d"], space: Space, repeats: int) -> dict[str, Any]:
    """A codec with the wire."""
    ctx = Context(round=1, client=1)
    header = wire.Header(space.fingerprint, bytes(16), 1, 1, repr(codec), space.numel)
    layout = codec.layout(space)
    encode_s, payload = timed(lambda: wire.pack(header, codec.encode(x, space, ctx)), repeats)
    decode_s, back = timed(lambda: codec.decode(wire.unpack(payload, header, layout), space, ctx), repeats)
    return row(name, x, len(payload), encode_s, decode_s, back) | {
        "density": float(torch.count_nonzero(back)) / x.numel(),
        "floor_bits_per_param": floor(codec.encode(x, space, ctx), back),
    }


def floor(parts: Parts, back: Float[Tensor, " d"]) -> float:
    """Order-0 entropy of parts in bits for each parameter; of a context code, that of the mask and signs it codes."""
    bits = 0.0
    for name, part in parts.items():
        match part:
            case Plane(bits=packed, numel=numel):
                ones = kernels.popcount(packed)
                bits += _entropy(np.array([ones, numel - ones], np.float64))
            case Symbols(values=values):
                bits += _entropy(np.bincount(values).astype(np.float64))
            case Numbers() if name == "stream":
                kept = float(torch.count_nonzero(back))
                bits += _entropy(np.array([kept, back.numel() - kept])) + kept
            case Numbers(values=values):
                bits += 8 * values.nbytes
    return bits / back.numel()


def _entropy(counts: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    counts = counts[counts > 0]
    return float(-(counts @ np.log2(counts / counts.sum()))) if counts.size else 0.0


def row(
    coder: str, x: Float[Tensor, " d"], size: int, encode_s: float, decode_s: float, back: Tensor
) -> dict[str, Any]:
    """One line of the table."""
    return {
        "coder": coder,
        "bits_per_param": 8 * size / x.numel(),
        "encode_gbps": 4e-9 * x.numel() / encode_s,
        "decode_gbps": 4e-9 * x.numel() / decode_s,
        "relative_error": float((x - back).norm() / x.norm()),
    }


def others(x: Float[Tensor, " d"], space: Space, repeats: int) -> list[dict[str, Any]]:
    """What a user would otherwise call; ComPEFT's algorithm ends in a dense vector and has no bytes of its own."""

    def zstd(data: Tensor) -> bytes:
        return zstandard.ZstdCompressor(level=3).compress(data.numpy().tobytes())

    def from_zstd(data: bytes) -> Tensor:
        raw = zstandard.ZstdDecompressor().decompress(data)
        return torch.frombuffer(bytearray(raw), dtype=torch.float16).float()

    def compeft(density: float) -> Tensor:
        least = torch.kthvalue(x.abs(), max(1, round((1 - density) * x.numel()))).values
        return torch.where(x.abs() >= least, torch.sign(x), 0.0) * x.std()

    ways: list[tuple[str, Callable[[], Any], Callable[[Any], Tensor]]] = [
        ("safetensors fp16", lambda: safetensors.torch.save({"a": x.half()}),
         lambda data: safetensors.torch.load(data)["a"].float()),
        ("zstd -3 of fp16", lambda: zstd(x.half()), from_zstd),
        ("ComPEFT's algorithm, 0.2, dense fp16 out", lambda: compeft(0.2).half().numpy().tobytes(),
         lambda data: torch.frombuffer(bytearray(data), dtype=torch.float16).float()),
        ("ComPEFT's algorithm, 0.2, zstd -3", lambda: zstd(compeft(0.2).half()), from_zstd),
    ]  # fmt: skip
    rows = []
    for name, encode, decode in ways:
        encode_s, data = timed(encode, min(repeats, 3))
        decode_s, back = timed(lambda data=data, decode=decode: decode(data), min(repeats, 3))  # type: ignore[misc]
        rows.append(row(name, x, len(data), encode_s, decode_s, back))
    return rows


def fills(numel: int, repeats: int) -> list[dict[str, Any]]:
    """What no decode to a dense float32 vector is faster than."""
    held = np.empty(numel, np.float32)

    def new() -> None:
        with mmap.mmap(-1, 4 * numel, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            pages.madvise(mmap.MADV_HUGEPAGE)  # as numpy does
            np.frombuffer(pages, np.float32).fill(1)

    ways = {"a plain fill of memory that is held": lambda: held.fill(1), "a plain fill of new memory": new}
    return [{"coder": name, "decode_gbps": 4e-9 * numel / timed(fill, repeats)[0]} for name, fill in ways.items()]


if __name__ == "__main__":
    main()
