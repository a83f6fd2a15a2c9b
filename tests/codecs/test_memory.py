"""How much memory the sparse codecs and the quantisers take beside the delta."""

import tracemalloc

import numpy as np
import pytest
import torch

from fedpeft.codecs import (
    DCT,
    QSGD,
    Block4,
    Budget,
    Context,
    DeadZone,
    Identity,
    LogByte,
    LowRank,
    MagnitudeMask,
    PowerSGD,
    PublicSupport,
    RandomMask,
    Rotated,
    Ternary,
    TopK,
    Uniform,
    chain,
)
from fedpeft.space import Slot, Space

SLOTS = tuple(Slot(f"{i}.{ab}", (16, 4096) if ab == "A" else (4096, 16), f"lora_{ab}") for i in range(8) for ab in "AB")
LARGE = Space(SLOTS)
X = torch.from_numpy(np.random.default_rng(0).standard_normal(LARGE.numel, np.float32))
CONTEXT, SCRATCH = Context(round=3, client=2), 1 << 19


def peak(call):
    """What a call gives, and the most bytes that Python and numpy held meanwhile beyond those held before."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "codec",
    [
        TopK(0.03),
        TopK(0.5, bits=4, chunk=None),
        RandomMask(0.1),
        RandomMask(0.5, Identity("bfloat16")),
        PublicSupport(0.5),
        MagnitudeMask(0.5, 0.5),
        chain(DCT(), TopK(0.03)),
        Uniform(4, stochastic=True),
        DeadZone(step="slot"),
        Block4(),
        QSGD(),
        Budget(X.numel() // 8),
        Budget(X.numel() // 2),
        Ternary(0.1),
        Ternary(0.1, context=True),
        Rotated(4),
        LogByte(),
        LowRank(4),
        PowerSGD(4),
    ],
    ids=repr,
)
def test_at_most_twice_the_delta(codec):
    codec.encode(X, LARGE, CONTEXT)
    parts, encoding = peak(lambda: codec.encode(X, LARGE, CONTEXT))
    _, decoding = peak(lambda: codec.decode(parts, LARGE, CONTEXT))
    assert encoding < 2 * 4 * LARGE.numel + SCRATCH and decoding < 2 * 4 * LARGE.numel + SCRATCH
