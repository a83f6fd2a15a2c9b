"""Ternary payloads against the entropy floor, and their speed against what a user would otherwise call.

`python -m simulations.bench_wire`: 8 M i.i.d. parameters at densities from 1 to 50 %; encode is codec and wire (exact
selection included), decode is wire and codec to a dense float32 vector; GB/s of float32, one core, CPU time, best of
several. Beside it: safetensors fp16, zstd of fp16, and `torch.topk` with int32 indices and one sign byte.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
import zstandard
from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels, wire
from fedpeft.codecs import Codec, Context, Identity, Ternary, Uniform
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from simulations import table

COLUMNS = ("coder", "density", "bits_per_param", "floor_bits_per_param", "ratio_to_floor", "encode_gbps", "decode_gbps",
           "relative_error")  # fmt: skip


def floor(density: float) -> float:
    """Entropy of an i.i.d. ternary symbol in bits: H(k) for the mask, k for the signs."""
    if density >= 1:
        return 1.0
    return float(-density * np.log2(density) - (1 - density) * np.log2(1 - density) + density)


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """CPU seconds of the fastest of some runs, and what the last gave; one run before is not counted."""
    result = work()
    best = float("inf")
    for _ in range(repeats):
        began = time.thread_time()
        result = work()
        best = min(best, time.thread_time() - began)
    return best, result


def main() -> None:
    """Measure and print."""
    options = table.arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    kernels.warm_up()
    d, repeats = (1 << 20, 3) if options.quick else (1 << 23, 7)
    x = torch.from_numpy(Stream(options.seed, Purpose.DATA).normal(d)).float()
    space = Space((Slot("a", (d,), "lora_A"),))
    rows = [ours("Ternary", Ternary(k), x, space, repeats, k) for k in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)]
    rows += [ours(f"Uniform({bits})", Uniform(bits), x, space, repeats, None) for bits in (2, 4, 8)]
    rows += [ours("Identity fp16", Identity("float16"), x, space, repeats, None)]
    rows += others(x, repeats)
    table.show(f"ternary payloads, {d:,} i.i.d. parameters", rows, options, COLUMNS)
    table.save(rows, options)


def ours(
    name: str, codec: Codec, x: Float[Tensor, " d"], space: Space, repeats: int, density: float | None
) -> dict[str, Any]:
    """A codec with the wire."""
    ctx = Context(round=1, client=1)
    header = wire.Header(space.fingerprint, bytes(16), 1, 1, repr(codec), space.numel)
    layout = codec.layout(space)
    encode_s, payload = timed(lambda: wire.pack(header, codec.encode(x, space, ctx)), repeats)
    decode_s, back = timed(lambda: codec.decode(wire.unpack(payload, header, layout), space, ctx), repeats)
    return row(name, x, len(payload), encode_s, decode_s, back, density)


def row(
    coder: str, x: Float[Tensor, " d"], size: int, encode_s: float, decode_s: float, back: Tensor, density: float | None
) -> dict[str, Any]:
    """One line of the table."""
    bits, least = 8 * size / x.numel(), None if density is None else float(floor(density))
    return {
        "coder": coder,
        "density": density,
        "bits_per_param": bits,
        "floor_bits_per_param": least,
        "ratio_to_floor": bits / least if least else None,
        "encode_gbps": 4e-9 * x.numel() / encode_s,
        "decode_gbps": 4e-9 * x.numel() / decode_s,
        "relative_error": float((x - back).norm() / x.norm()),
    }


def others(x: Float[Tensor, " d"], repeats: int) -> list[dict[str, Any]]:
    """What a user would otherwise call."""

    def fp16() -> bytes:
        return safetensors.torch.save({"a": x.half()})

    def from_fp16(data: bytes) -> Tensor:
        return safetensors.torch.load(data)["a"].float()

    def zstd() -> bytes:
        return zstandard.ZstdCompressor(level=3).compress(x.half().numpy().tobytes())

    def from_zstd(data: bytes) -> Tensor:
        raw = zstandard.ZstdDecompressor().decompress(data)
        return torch.frombuffer(bytearray(raw), dtype=torch.float16).float()

    def top(density: float) -> bytes:
        index = x.abs().topk(round(density * x.numel())).indices
        out = io.BytesIO()
        out.write(index.int().numpy().tobytes())
        out.write((x[index] < 0).numpy().tobytes())
        out.write(x[index].abs().mean().numpy().tobytes())
        return out.getvalue()

    def from_top(data: bytes) -> Tensor:
        k, scale = len(data) // 5, float(torch.frombuffer(bytearray(data[-4:]), dtype=torch.float32))
        index = torch.frombuffer(bytearray(data[: 4 * k]), dtype=torch.int32).long()
        sign = torch.frombuffer(bytearray(data[4 * k : 5 * k]), dtype=torch.uint8).float()
        return torch.zeros_like(x).index_copy(0, index, scale * (1 - 2 * sign))

    rows = []
    for name, encode, decode, density in (
        ("safetensors fp16", fp16, from_fp16, None),
        ("zstd -3 of fp16", zstd, from_zstd, None),
        ("torch.topk, int32 index + sign", lambda: top(0.05), from_top, 0.05),
        ("torch.topk, int32 index + sign", lambda: top(0.2), from_top, 0.2),
    ):
        encode_s, data = timed(encode, min(repeats, 3))
        decode_s, back = timed(lambda data=data, decode=decode: decode(data), min(repeats, 3))  # type: ignore[misc]
        rows.append(row(name, x, len(data), encode_s, decode_s, back, density))
    return rows


if __name__ == "__main__":
    main()
