"""The codecs, spaces and deltas that every law is checked on; a new public codec needs a line in `CODECS`."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import jaxtyping
import numpy as np
import torch

from fedpeft import wire
from fedpeft.codecs import (
    DCT,
    QSGD,
    SRHT,
    Block4,
    Budget,
    Clip,
    Codec,
    Context,
    DeadZone,
    ErrorFeedback,
    Ferret,
    Field,
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
from fedpeft.codecs.base import LARGEST, finite
from fedpeft.space import Slot, Space


@contextmanager
def without_type_checks() -> Iterator[None]:
    """As users call it: without conftest's run-time types, which would speak up before the library's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@dataclass(frozen=True)
class Ranking(Codec):
    """A plug-in: the order of all coordinates and the largest magnitude."""

    def layout(self, space):
        return {"order": Field("numbers", space.numel, dtype="int32", permutation=True), "largest": Field("numbers", 1)}

    def encode(self, delta, space, ctx):
        x = finite(delta)
        order = np.argsort(x, kind="stable").astype(np.int32)
        return {"order": Numbers(order), "largest": Numbers(np.abs(x).max().reshape(1))}

    def decode(self, parts, space, ctx):
        out = np.empty(space.numel, np.float32)
        levels = np.linspace(-1, 1, space.numel, dtype=np.float32) * parts["largest"].values[0]
        out[parts["order"].values] = levels
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Lottery(Codec):
    """A plug-in: a random share of the coordinates, the same for all clients of a round, scaled up."""

    density: float = 0.25

    linear: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def _kept(self, space, ctx):
        return ctx.shared.permutation(space.numel)[: self._count(space)]

    def _count(self, space):
        return max(1, round(self.density * space.numel))

    def layout(self, space):
        return {"values": Field("numbers", self._count(space))}

    def encode(self, delta, space, ctx):
        values = finite(delta)[self._kept(space, ctx)]
        if float(np.abs(values).max()) * space.numel / self._count(space) > LARGEST:
            raise ValueError("a value cannot be scaled up")
        return {"values": Numbers(values)}

    def decode(self, parts, space, ctx):
        out = np.zeros(space.numel, np.float32)
        out[self._kept(space, ctx)] = parts["values"].values * np.float32(space.numel / self._count(space))
        return torch.from_numpy(out)


PLUGINS = {"Ranking": Ranking, "Lottery": Lottery}

CODECS = [
    *map(Identity, ("float32", "float16", "bfloat16")),
    *(Ternary(*a) for a in product((0.01, 0.2, 1.0), ("mean", "norm", "unbiased"), ("slot", "global"))),
    *(Ternary(*a, context=True) for a in product((0.01, 0.2, 1.0), ("mean", "unbiased"), ("slot", "global"))),
    *(Uniform(*a) for a in product((2, 3, 4, 5, 8), (False, True))),
    *(DeadZone(*a) for a in product((0.1, 1.5, 2.0, 6.0), ("norm", "mean", "unbiased"), ("global", "slot"))),
    *(Block4(*a) for a in product(("nf4", "e3m0"), (1, 5, 64))),
    *(QSGD(*a) for a in ((16, 512), (1, 5), (127, 3), (4, 64))),
    *(Rotated(*a) for a in product((1, 2, 3, 4), ("unbiased", "mean", "norm"), (64, 1024))),
    *(SRHT(None, 0.5, *a, block=32) for a in product(("mean", "unbiased"), ("float32", "float16", "logbyte"))),
    SRHT(10, directions="run"),
    SRHT(density=1.0),
    *(Ferret(None, 0.7, *a, block=16) for a in product(("mean", "unbiased"), ("float32", "float16", "logbyte"))),
    Ferret(20, scale="unbiased", directions="run"),
    LogByte(),
    *(LowRank(*a) for a in product((1, 3), (None, 0.9, 1.0))),
    LowRank(2, weigh="product"),
    *(PowerSGD(*a) for a in ((1,), (2, Identity("float16")), (2, Uniform(4)))),
    PowerSGD(1, per_slot({"head": Identity()}, default=Uniform(8))),
    *(TopK(*a) for a in product((0.01, 0.3, 1.0), (1, 2, 4), (5, 4096, None))),
    *(chain(DCT(n), codec) for n in (2, 3, 64) for codec in (Identity(), TopK(density=0.25), PublicSupport())),
    *(RandomMask(0.3, codec) for codec in (Identity(), Uniform(8), Uniform(4, True), Ternary(0.5))),
    RandomMask(0.3, Uniform(4, True), rescale=False),
    RandomMask(1.0, Identity("bfloat16")),
    RandomMask(0.5, RandomMask(0.5, Identity())),
    *(PublicSupport(0.3, codec) for codec in (Identity(), Identity("float16"), Rotated(bits=4))),
    PublicSupport(1.0),
    PublicSupport(0.4, rescale=True),
    PublicSupport(0.3, elect="last", explore=0.5),
    Ranks(),
    per_slot({"lora_A": Ranks()}, default=PublicSupport(0.3, Identity("float16"), elect="last")),
    per_slot({"lora_A": PublicSupport(0.5)}, default=RandomMask(0.5)),
    *(MagnitudeMask(*a) for a in ((0.5, 0.4, 8), (0.5, 0.8, 4), (0.9, 0.2, 2), (0.4, 0.0, 8))),
    chain(Clip(norm=0.5), Ternary()),
    chain(Clip(norm=1e6), Clip(norm=2.0), Uniform(bits=4)),
    chain(Clip(norm=3.0), chain(Clip(norm=2.0), Identity())),
    per_slot({"lora_A": Uniform(bits=4), "*.lora_B": Ternary(density=0.5)}, default=Identity("bfloat16")),
    per_slot({"*.0.*": per_slot({"lora_A": Identity()}, default=Ternary(scale="norm"))}, default=Uniform(2, True)),
    chain(Clip(norm=4.0), per_slot({"head": Identity()}, default=chain(Clip(norm=1.0), Ternary(threshold="global")))),
    *(Budget(n, *a) for n, a in product((330, 400, 1000), (("absolute", "mean"), ("relative", "norm")))),
    Budget(20),
    Budget(450, scale="unbiased"),
    Fragments(Identity(), count=2),
    Fragments(chain(Clip(norm=4.0), Ternary()), count=3),
    Fragments(Uniform(4, True), count=1),
    Turns(Ternary(density=0.5), ("*", "*")),
    Turns(Identity(), ("*",)),
    Ranking(),
    Lottery(),
    per_slot({"head": Lottery(0.5)}, default=Ranking()),
    per_slot({"lora_A": LowRank(2), "*.lora_B": SRHT(density=0.25)}, default=LogByte()),
]
MASKS = Lottery, RandomMask, PublicSupport, MagnitudeMask
LINEAR = [c for c in CODECS if isinstance(c, SRHT | Ferret) and c.dtype == "float32"]
UNBIASED = [c for c in LINEAR if c.scale == "unbiased" and c.directions == "round"]
UNBIASED += [c for c in CODECS if isinstance(c, MagnitudeMask | QSGD) or (isinstance(c, Uniform) and c.stochastic)]
UNBIASED += [
    Lottery(),
    PublicSupport(0.4, rescale=True),
    RandomMask(0.3, Identity()),
    RandomMask(0.3, Uniform(4, True)),
]
UNBIASED += [RandomMask(0.5, RandomMask(0.5, Identity()))]
LINEAR += [
    Identity(),
    Lottery(),
    Fragments(Identity(), 2),
    Turns(Identity(), ("*",)),
    PowerSGD(),
    PublicSupport(0.3),
    PublicSupport(1.0),
    PublicSupport(0.4, rescale=True),
    PublicSupport(0.3, elect="last", explore=0.5),
]
FEEDBACKS = [ErrorFeedback(Ternary(density=0.1)), ErrorFeedback(Uniform(bits=2), decay=0.5)]


def space(width, depth=2):
    """An adapter of linear layers of this width, a head, a scalar and a slot without a parameter."""
    slots = [Slot(f"layer.{i}.lora_{ab}", (3, width) if ab == "A" else (width - 2, 3), f"lora_{ab}")
             for i, ab in product(range(depth), "AB")]  # fmt: skip
    slots += [Slot("head.weight", (2, width + 2), "head"), Slot("head.bias", (1,), "head")]
    return Space((*slots, Slot("temperature", (), "head"), Slot("unused", (0, 4), "head")))


SPACE, LARGE = space(7), space(301)
CONTEXT = Context(seed=5, round=3, client=2)


def normal(space, seed=0):
    """Normal numbers whose scale differs by slot, as it does between A and B."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(space.numel)).float()
    for i, slot in enumerate(space.slots):
        space.view(x, slot.name).mul_(0.5**i)
    return x


def one_hot(space):
    x = torch.zeros(space.numel)
    x[space.numel // 2] = -0.3
    return x


DELTAS = {
    "normal": normal,
    "integers": lambda space: (normal(space) * 4).round(),
    "zero": lambda space: torch.zeros(space.numel),
    "negative zero": lambda space: -torch.zeros(space.numel),
    "equal": lambda space: torch.full((space.numel,), 0.7),
    "one": one_hot,
    "denormal": lambda space: normal(space) * 1e-41,
    "least denormal": lambda space: torch.full((space.numel,), -1e-45),
    "huge": lambda space: normal(space) * 1e30,
    "large and small": lambda space: normal(space) * torch.logspace(-30, 30, space.numel),
}

LARGEST_NUMBERS = {
    "one": lambda space: LARGEST * one_hot(space).sign(),
    "two": lambda space: LARGEST * one_hot(space).sign() - LARGEST / 3 * one_hot(space).sign().roll(30),
    "all": lambda space: torch.full((space.numel,), LARGEST),
    "signs": lambda space: LARGEST * normal(space).sign(),
    "a third": lambda space: -LARGEST * (torch.arange(space.numel) % 3 == 0).float(),
    **{f"normal / {2**i}": lambda space, i=i: _to_the_end(normal(space, i)) / 2**i for i in range(8)},
}


def _to_the_end(x):
    return x / x.abs().max() * LARGEST


def over(*names):
    """Have a test run over deltas, by name: thousands of tests of their own would cost more than what they test."""

    def decorate(test):
        @functools.wraps(test)
        def over_all(*args, **others):
            for name in names:
                try:
                    test(*args, name=name, **others)
                except Exception as error:
                    error.add_note(f"with the delta {name!r}")
                    raise

        signature = inspect.signature(test)
        kept = [parameter for parameter in signature.parameters.values() if parameter.name != "name"]
        over_all.__signature__ = signature.replace(parameters=kept)
        return over_all

    return decorate


every_delta = over(*DELTAS)


def beyond(codec, name):
    """Whether a codec's number type cannot hold these deltas, so that it must say so."""
    return repr(Identity("float16")) in repr(codec) and name in ("huge", "large and small")


def header(codec, space=SPACE, ctx=CONTEXT):
    """The header of a payload that this codec makes."""
    return wire.Header(space.fingerprint, b"0123456789abcdef", ctx.round, ctx.client, repr(codec), space.numel)


def bits(part):
    """A part as something that compares bit for bit."""
    match part:
        case Plane(bits=b, numel=n):
            return "plane", n, b.dtype.str, b.tobytes()
        case Symbols(values=v, levels=n):
            return "symbols", n, v.dtype.str, v.tobytes()
        case Numbers(values=v):
            return "numbers", v.shape, v.dtype.str, v.tobytes()


def all_bits(parts):
    """All parts as something that compares bit for bit."""
    return {name: bits(part) for name, part in parts.items()}


def there_and_back(codec, delta, space=SPACE, ctx=CONTEXT):
    """What the receiver makes of a delta."""
    return codec.decode(codec.encode(delta, space, ctx), space, ctx)
