"""How much memory the codecs take beside the delta, and error feedback around them."""

import ctypes
import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft.codecs import (
    DCT,
    QSGD,
    Block4,
    Budget,
    Clip,
    Context,
    DeadZone,
    ErrorFeedback,
    Fragments,
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
    per_slot,
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


CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
seen_by_the_system = pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="needs Linux's account of memory")
HUGE = Space(tuple(Slot(f"{i}.{ab}", (8, 1 << 17), f"lora_{ab}") for i in range(4) for ab in "AB"))


def resident(call, limit):
    """What a call gives, and by how many deltas the process grew meanwhile at most: torch's memory counts too.

    The least of a few measurements, or the first below the limit: pages of what is held that the system had taken out
    of memory come back when they are read, and are no growth.
    """
    for _ in range(4):
        gc.collect()
        # What the allocator keeps of freed memory would be taken again without being seen.
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        before = _status("VmRSS")
        result, grown = call(), (_status("VmHWM") - before) / (4 * HUGE.numel)
        if grown < limit:
            break
    return result, grown


def _status(name):
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


@pytest.fixture(scope="module")
def huge():
    return torch.from_numpy(np.random.default_rng(0).standard_normal(HUGE.numel, np.float32))


SPARSE, PARTS = Ternary(0.05), 0.4  # what is sent, a byte a number at most, and small change


@seen_by_the_system
@pytest.mark.parametrize(
    ("codec", "encoding", "decoding"),
    [
        (Identity(), 0, 1),
        (chain(Clip(1.0), Identity()), 1, 1),
        (chain(Clip(1.0), SPARSE), 1, 1),
        (per_slot({"lora_A": Uniform(4)}, default=SPARSE), 1, 2),
        (Fragments(SPARSE, count=2), 2, 1.5),
        (Fragments(SPARSE, count=1), 2, 2),
    ],
    ids=repr,
)
def test_what_torch_takes_counts_too(codec, encoding, decoding, huge):
    codec.encode(huge, HUGE, CONTEXT)
    parts, grown = resident(lambda: codec.encode(huge, HUGE, CONTEXT), encoding + PARTS)
    assert grown < encoding + PARTS
    _, grown = resident(lambda: codec.decode(parts, HUGE, CONTEXT), decoding + PARTS)
    assert grown < decoding + PARTS


@seen_by_the_system
@pytest.mark.parametrize("codec", [Identity(), SPARSE, Uniform(4), TopK(0.03)], ids=repr)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_error_feedback_holds_what_it_wants_and_what_was_decoded(codec, clip, huge):
    feedback = ErrorFeedback(codec, clip=clip)
    feedback.encode(huge, huge, HUGE, CONTEXT)
    _, grown = resident(lambda: feedback.encode(huge, huge, HUGE, CONTEXT), 2 + PARTS)
    assert grown < 2 + PARTS
