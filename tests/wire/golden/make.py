"""Write the golden payloads: `python -m tests.wire.golden.make`. Only a new wire version may change them.

Every part is drawn from integers of `Stream`, or is what a codec makes of such integers in sums of a fixed order, so
that any machine makes the same files.
"""

from pathlib import Path

import numpy as np
import torch

from fedpeft import wire
from fedpeft.codecs import (
    DCT,
    QSGD,
    SRHT,
    Block4,
    Budget,
    Context,
    DeadZone,
    Ferret,
    Fragments,
    Identity,
    LogByte,
    LowRank,
    MagnitudeMask,
    Numbers,
    Plane,
    PowerSGD,
    PublicSupport,
    RandomMask,
    Ranks,
    Rotated,
    Symbols,
    Ternary,
    TopK,
    Turns,
    Uniform,
    chain,
    per_slot,
)
from fedpeft.random import Purpose, Stream
from fedpeft.space import Slot, Space
from tests.wire.crafting import header, plane

FOLDER = Path(__file__).parent
WORDS = Stream(seed=1, purpose=Purpose.CODEC_SHARED).words(20_000)
BYTES = (WORDS & 255).astype(np.uint8)


def _plane(share, numel):
    return plane(np.flatnonzero(WORDS[:numel] < share * 2**32), numel)


def _skewed(levels, numel):
    """Symbols with a bell-shaped histogram: the bits set in a word."""
    return Symbols((np.bitwise_count(WORDS[:numel]) % levels).astype(np.uint8), levels)


SPACE = Space((Slot("a", (8, 100), "lora_A"), Slot("b", (100, 7), "lora_B"), Slot("bias", (3,), "head")))
ODD = Space((Slot("a", (9, 100), "lora_A"), Slot("b", (70, 9), "lora_B"), Slot("c", (5,), "head")))
OWN = WORDS[: 2 * ODD.numel]


def _encoded(codec):
    """The parts of a delta of small integers, whose sums and products of 2 are exact; so are quotients' roundings."""
    delta = torch.from_numpy(BYTES[: SPACE.numel].astype(np.float32) - 128)
    return dict(codec.encode(delta, SPACE, Context(seed=1, round=3, client=2)))


def _factors(codec):
    """Parts that `LowRank` reads, made of integers: singular vectors are not the same to the bit everywhere."""
    sizes = {name: field.numel for name, field in codec.layout(SPACE).items()}
    return {
        "values": Numbers(np.array([2, 1, 3], np.float32)),
        "left": Numbers((BYTES[: 2 * 8 + 100] / 64).astype(np.float16)),
        "right": Numbers((BYTES[: 2 * 100 + 7] / 128).astype(np.float16)),
        "whole": Numbers(np.arange(sizes["whole"], dtype=np.float32)),
        "rank": Symbols(np.array([2, 1], np.uint8), codec.rank + 1),
    }


def _coded(codec):
    """What a codec makes of whole numbers from -500 to 500: which coordinates it draws may never change either."""
    delta, start = (torch.from_numpy((part % 1001).astype(np.float32) - 500) for part in np.split(OWN, 2))
    return codec.encode(delta, ODD, Context(seed=1, round=3, client=2, start=start, before=torch.zeros(ODD.numel)))


OF_BYTES = {
    "srht": SRHT(density=0.05, block=256),
    "srhthalves": SRHT(density=0.05, block=256, dtype="float16", directions="run"),
    "ferret": Ferret(50, block=400, dtype="logbyte"),
    "logbyte": LogByte(),
}
OF_WORDS = {
    "ternarycontext": Ternary(density=0.2, context=True),
    "topk": TopK(density=0.05, chunk=256),
    "demo": chain(DCT(), TopK(density=1 / 16, bits=3)),
    "dare": RandomMask(density=0.1, codec=Identity()),
    "della": MagnitudeMask(density=0.1, eps=0.1),
    "publicsupport": PublicSupport(density=0.1),
    "elected": PublicSupport(density=0.02, elect="last"),
    "rotated": Rotated(bits=2, block=256),
    "uniform": Uniform(bits=4),
    "uniformrandom": Uniform(bits=3, stochastic=True),
    "deadzone": DeadZone(bits=2.0),
    "deadzoneslots": DeadZone(bits=1.0, scale="unbiased", step="slot"),
    "fragments": Fragments(Uniform(bits=3), count=2),
    "turns": Turns(Uniform(bits=2), ("lora_A", "head", "lora_B")),
    "nf4": Block4("nf4"),
    "e3m0": Block4("e3m0", block=50),
    "qsgd": QSGD(levels=16, bucket=100),
    "budget": Budget(700),
    "ranks": Ranks(),
    "powersgd": PowerSGD(rank=2),
    "perslot": per_slot({"head": Identity("float16")}, default=Ternary(density=0.05)),
}
LOW_RANK = {"lowrank": LowRank(2, energy=0.9)}
CODECS = {**OF_BYTES, **OF_WORDS, **LOW_RANK}


PARTS = {
    "plane_bits": {"part": _plane(0.5, 1001)},
    "plane_rans_classes": {"part": _plane(0.2, 4003)},
    "plane_rans": {"part": Plane(np.where(BYTES[:600] < 200, 0x0F, 0xF0).astype(np.uint8), 4800)},
    "plane_rice": {"part": _plane(0.005, 19_999)},
    "plane_empty": {"part": plane([], 0)},
    "plane_zeros": {"part": plane([], 999)},
    "symbols_3_bits": {"part": Symbols(BYTES[:101] % 3, 3)},
    "symbols_3_rans": {"part": Symbols((BYTES[:1500] < 30).astype(np.uint8) * 2, 3)},
    "symbols_15_rans": {"part": _skewed(15, 1500)},
    "symbols_255_bits": {"part": Symbols(BYTES[:301] % 255, 255)},
    "symbols_255_rans": {"part": _skewed(255, 1501)},
    "symbols_256_bits": {"part": Symbols(BYTES[:77], 256)},
    "numbers": {
        np.dtype(dtype).name: Numbers(np.arange(-3, 4).astype(dtype)) for dtype in ("f4", "f2", "i1", "i2", "i4", "i8")
    }
    | {np.dtype(dtype).name: Numbers(np.arange(250, 253).astype(dtype)) for dtype in ("u1", "u2", "u4", "u8")},
    "ternary": {
        "mask": _plane(0.3, 2003),
        "scale": Numbers(np.array([0.5, 0.25, 1.5], np.float32)),
        "sign": plane(np.flatnonzero(WORDS[:601] & 1), 601),
    },
    **{name: _encoded(codec) for name, codec in OF_BYTES.items()},
    "lowrank": _factors(LOW_RANK["lowrank"]),
    **{name: _coded(codec) for name, codec in OF_WORDS.items()},
}


def payload(name):
    """The payload that today's encoder makes."""
    return wire.pack(header(codec=f"golden {name}"), PARTS[name])


if __name__ == "__main__":
    for name in PARTS:
        (FOLDER / f"{name}.bin").write_bytes(payload(name))
