"""Chances that learn: adaptive counters in contexts, and their mixing in the logistic domain; integers throughout.

The logistic mixing of PAQ7 (2005), as Mahoney describes it in "Data Compression Explained" (2013): here of three
counters, and with rates that fall. A chance is that of a bit being 1. Its logarithmic odds ("stretch") are held in
256ths, and limited to +-8. No table rests on a logarithm or an exponential of the machine, only on products and
quotients, which all machines round alike.
"""

from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpeft.kernels.arithmetic import CHANCE_BITS
from fedpeft.kernels.jit import inlined

ONE = 1 << CHANCE_BITS
FINE_BITS = 22  # of a counter's chance
SIDE = 2048  # entries of SQUASH for one sign of the odds
LIMIT = 1023  # bits after which a counter forgets
INPUTS = 3
STEADY = 160


class Counters(NamedTuple):
    """Chances as `FINE_BITS` fractions, and how many bits each has seen, up to `LIMIT`."""

    chance: NDArray[np.int32]
    seen: NDArray[np.int32]


class Mixer(NamedTuple):
    """Sets of `INPUTS` weights in 2^16ths, and how often each set has learned."""

    weight: NDArray[np.int64]
    trained: NDArray[np.int64]


def _squash() -> NDArray[np.int32]:
    """1 / (1 + e^-x) in 2^16ths for x = (i - 2048) / 256."""
    step, power, upper = 1.0039138893383475734436096, 1.0, []  # e^(1/256)
    for _ in range(SIDE):
        upper.append(round(ONE * power / (1.0 + power)))
        power *= step
    return np.array([0, *(ONE - p for p in upper[:0:-1]), *upper], np.int32)


def _stretch(squash: NDArray[np.int32]) -> NDArray[np.int32]:
    """Its inverse at the middles of 4096 chances."""
    return (np.searchsorted(squash, np.arange(4096) * 16 + 8) - SIDE).clip(1 - SIDE, SIDE - 1).astype(np.int32)


SQUASH = _squash()
STRETCH = _stretch(SQUASH)
PACE = np.array([5 * ONE // (5 * n + 8) for n in range(LIMIT + 1)], np.int32)  # 1 / (n + 1.6)
# The mixer's rate, 0.2 / sqrt(n + 100) and at least 0.002, in 2^16ths, for each 64 bits that it has learned from.
RATE = np.array([max(131, 13107 * 16 // isqrt((64 * i + 100) * 256)) for i in range(STEADY)], np.int32)


def counters(size: int, chance: float, seen: int = 0) -> Counters:
    """Counters that begin with the same chance, as sure of it as after `seen` bits."""
    first = min(max(round(chance * (1 << FINE_BITS)), 1), (1 << FINE_BITS) - 1)
    return Counters(np.full(size, first, np.int32), np.full(size, seen, np.int32))


def fine(odds: NDArray[np.int64]) -> NDArray[np.int32]:
    """The chances of odds in 256ths, from 0, as counters hold them."""
    return SQUASH[odds + SIDE] << np.int32(FINE_BITS - CHANCE_BITS)


def mixer(sets: int) -> Mixer:
    """A mixer that begins with the mean."""
    return Mixer(np.full(sets * INPUTS, ONE // INPUTS, np.int64), np.zeros(sets, np.int64))


@inlined
def squash(odds: int) -> int:
    """The chance, in 2^16ths, of odds in 256ths."""
    return np.int64(SQUASH[min(max(odds, 1 - SIDE), SIDE - 1) + SIDE])  # type: ignore[return-value]


@inlined
def stretch(counters: Counters, at: int) -> int:
    """The odds, in 256ths, of a counter."""
    return np.int64(STRETCH[counters.chance[at] >> (FINE_BITS - 12)])  # type: ignore[return-value]


@inlined
def count(counters: Counters, at: int, bit: int) -> None:
    """Move a counter towards a bit: by its share of all the bits seen, at first."""
    n = counters.seen[at]
    counters.chance[at] += (((bit << FINE_BITS) - counters.chance[at]) * np.int64(PACE[n])) >> CHANCE_BITS
    counters.seen[at] = min(n + 1, LIMIT)


@inlined
def mixed(mixer: Mixer, which: int, a: int, b: int, c: int) -> int:
    """The odds that a set of weights makes of three."""
    w, at = mixer.weight, INPUTS * which
    return (w[at] * a + w[at + 1] * b + w[at + 2] * c) >> CHANCE_BITS  # type: ignore[no-any-return]


@inlined
def learn(mixer: Mixer, which: int, error: int, a: int, b: int, c: int) -> None:
    """Step down the gradient of the code length: `error` is the bit less its chance, in 2^16ths."""
    w, at, n = mixer.weight, INPUTS * which, mixer.trained[which]
    step = error * np.int64(RATE[min(n >> 6, STEADY - 1)])
    w[at] += (a * step) >> 24
    w[at + 1] += (b * step) >> 24
    w[at + 2] += (c * step) >> 24
    mixer.trained[which] = n + 1
