"""As little error as so many bytes allow: each slot gets the rate that pays most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs import octaves
from fedpeft.codecs.allocation import MOST_LEVEL, NOTHING, Offer, allocate, levels, offers
from fedpeft.codecs.base import (
    LARGEST,
    Choice,
    Codec,
    Context,
    Field,
    Layout,
    Numbers,
    Parts,
    Symbols,
    take,
    with_largest,
)
from fedpeft.codecs.matrices import grids
from fedpeft.codecs.scale import Scale, check_scale, scales
from fedpeft.codecs.scaled import longest_step
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import context, rans, tables
from fedpeft.space import Space

_FRAMING = 220  # bytes of a payload beside its parts: header, checksum, names and sizes of the parts
_KINDS = ("nothing", "ternary", "levels")
_DENSITY = 0.05  # that the context code begins with
_PRECISION = 14  # bits of the frequencies that the wire codes levels by
_TRIES = 5


@dataclass(frozen=True)
class Budget(Codec):
    """Spend so many bytes where they lessen the error most: x^ = s_j l, l the integer levels of slot j.

    Each slot is offered nothing, ternary codes of two dozen densities, and levels with a dead zone of as many steps;
    the error of each is measured, from the sorted magnitudes, and its bits are entropies. Of a slot's offers those on
    the lower convex hull remain, and steps along the hulls are taken in the order of what a bit lessens the error by,
    until the bytes are spent: the same slope for all (Everett, 1963; Shoham and Gersho, 1988). What is kept, and its
    signs, go as one context code (`Ternary(context=True)`); what that saves is measured and spent in its turn. `chosen`
    says which of the three each slot was given, and how densely.

    An error of "absolute" is ||x - x^||^2 of the whole; "relative" weighs each slot's by its own square, so that a slot
    of small numbers counts as much as the others. Scales s_j are as in `Ternary`, on a grid of 2^(1/8).

    Of one slot of heavy tails (Student's t with 2 or 3 degrees of freedom) `DeadZone` at equal bytes has up to 15 %
    less error, since it moves its points to where the numbers are. One slot may also leave a third of the bytes
    unspent, since steps are a quarter of an octave apart and nothing lies between two: 31 % of 20,000 bytes for 40,000
    numbers of t with 2 degrees, 35 % of 390 for 600 normal ones. Of several slots one takes what another leaves.

    The dearest of the codecs, since it sorts and makes the context code several times: 0.01 to 0.02 GB/s of float32. It
    is for adapters of up to some ten million parameters, where that is a second or two of a round.

    Args:
        bytes_per_round: the most that a payload has, framing included, where no other codec is around this one; where
            the framing alone is more, nothing else is sent.
        error: what is to be least.
        scale: "mean", "norm" or "unbiased".
    """

    bytes_per_round: int
    error: Literal["absolute", "relative"] = "absolute"
    scale: Scale = "norm"

    def __post_init__(self) -> None:
        if type(self.bytes_per_round) is not int or self.bytes_per_round < 1:
            raise ValueError(f"bytes_per_round must be a positive whole number, got {self.bytes_per_round!r}")
        if self.error not in ("absolute", "relative"):
            raise ValueError(f"error must be 'absolute' or 'relative', got {self.error!r}")
        check_scale(self.scale)

    def layout(self, space: Space) -> Layout:
        """What each slot is given, its scale below the largest, what is kept with its signs, and levels above 1."""
        most = min(context.most_bytes(space.numel), self.bytes_per_round + 8)
        return {
            "kind": Field("symbols", len(space.slots), levels=len(_KINDS)),
            "scale": Field("symbols", len(space.slots), levels=octaves.LOWEST + 1),
            "largest": Field("numbers", 1),
            "stream": Field("numbers", most, ragged=True, dtype="uint8"),
            "level": Field("symbols", space.numel, ragged=True, levels=MOST_LEVEL),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Offer, allocate, encode; and again, with what the context code has saved or missed."""
        x, largest = with_largest(delta)
        largest = largest or 1.0
        found = [offers(slot) for slot in _slots(x, largest, space)]
        weights = [1 / f[0].error if self.error == "relative" and f[0].error else 1.0 for f in found]
        most = self.bytes_per_round - _FRAMING - len(repr(self)) - 5 * len(found) // 4
        best, bits, share = self._parts(x, [f[0] for f in found], largest, space), 8.0 * most, 0.85
        chosen: list[Offer] = []
        for _ in range(_TRIES if most > 0 else 0):
            before, chosen = chosen, allocate(found, weights, bits, share)
            if chosen == before:
                break
            parts = self._parts(x, chosen, largest, space)
            size = _size(parts)
            if _size(best) < size <= most:
                best = parts
                if size > 0.985 * most:
                    break
            coded, plain = sum(offer.coded for offer in chosen), sum(offer.plain for offer in chosen)
            streamed = 8 * take(parts, "stream", Numbers).values.size
            share = min(1.2, max(0.1, streamed / coded)) if coded else share
            bits = 8 * 0.995 * most - (8 * size - streamed - plain)
        return best

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Signs times levels times their slot's scale.

        Raises:
            PayloadError: the parts contradict each other, or a level times its scale is not finite.
        """
        kinds, codes = take(parts, "kind", Symbols).values, take(parts, "level", Symbols).values
        largest = float(take(parts, "largest", Numbers).values[0])
        factors = (largest * octaves.shares(take(parts, "scale", Symbols).values)).astype(np.float32)
        if not float(np.abs(factors).max(initial=0.0)) * MOST_LEVEL <= LARGEST:
            raise PayloadError(Defect.NON_FINITE, f"level {MOST_LEVEL} of the largest scale is not finite")
        mask, signs = _planes(parts, space)
        out = np.empty(space.numel, np.float32)
        kernels.unpack_ternary(mask, signs, np.array(space.bounds), factors, out)
        expected = int(kernels.kept_by_slot(mask, np.array(space.bounds))[kinds == _KINDS.index("levels")].sum())
        if expected != codes.size:
            raise PayloadError(Defect.COUNT, f"expected {expected} levels, got {codes.size}")
        place = 0
        for kind, (begin, end) in zip(kinds, pairwise(space.bounds), strict=True):
            if kind == _KINDS.index("levels"):
                kept = np.unpackbits(mask[begin // 8 : -(-end // 8)], bitorder="little")[begin % 8 :][: end - begin]
                level = codes[place : (place := place + int(kept.sum()))]
                out[begin:end][kept != 0] *= level.astype(np.float32) + 1
        return torch.from_numpy(out)

    def chosen(self, parts: Parts, space: Space, ctx: Context) -> Mapping[str, Choice]:
        """What each slot was given: "nothing", "ternary" or "levels", and of how many of its coordinates."""
        kinds = take(parts, "kind", Symbols).values
        kept = kernels.kept_by_slot(_planes(parts, space)[0], np.array(space.bounds))
        return {
            slot.name: Choice(_KINDS[kind], int(count) / max(1, slot.numel))
            for slot, kind, count in zip(space.slots, kinds, kept, strict=True)
        }

    def _parts(self, x: NDArray[np.float32], chosen: Sequence[Offer], largest: float, space: Space) -> Parts:
        kinds, level = np.array([_kind(offer) for offer in chosen], np.uint8), np.empty(x.size, np.int8)
        given = [level[begin:end] for begin, end in pairwise(space.bounds)]
        wanted = np.zeros(kinds.size)
        for j, (slot, offer) in enumerate(zip(_slots(x, largest, space), chosen, strict=True)):
            given[j][:] = levels(slot, offer)
            wanted[j] = self._scale(slot, given[j])
        top = wanted.max(initial=0.0)
        mask, signs = (np.packbits(bits, bitorder="little") for bits in (level != 0, level[level != 0] < 0))
        several = [
            level[level != 0] for kind, level in zip(kinds, given, strict=True) if kind == _KINDS.index("levels")
        ]
        above = np.abs(np.concatenate([np.empty(0, np.int8), *several])).astype(np.uint8) - np.uint8(1)
        return {
            "kind": Symbols(kinds, len(_KINDS)),
            "scale": Symbols(octaves.places(wanted), octaves.LOWEST + 1),
            "largest": Numbers(np.array([min(largest * top, longest_step(MOST_LEVEL))], np.float32)),
            "stream": Numbers(context.encode(mask, signs, space.numel, _given_grids(space, kinds), _DENSITY)),
            "level": Symbols(above, MOST_LEVEL),
        }

    def _scale(self, x: NDArray[np.float32], level: NDArray[np.int8]) -> float:
        terms = np.square(x, dtype=np.float64), level * x.astype(np.float64), np.square(level.astype(np.int64))
        return float(scales(self.scale, *(term.sum(keepdims=True) for term in terms))[0])


def _slots(x: NDArray[np.float32], largest: float, space: Space) -> Iterator[NDArray[np.float32]]:
    """One slot after the other, over the largest magnitude, so that squares neither overflow nor vanish."""
    for begin, end in pairwise(space.bounds):
        yield x[begin:end] / np.float32(largest)


def _kind(offer: Offer) -> int:
    if offer.step == NOTHING:
        return _KINDS.index("nothing")
    return _KINDS.index("levels" if offer.step else "ternary")


def _planes(parts: Parts, space: Space) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Which coordinates are kept, and their signs."""
    kinds, stream = take(parts, "kind", Symbols).values, take(parts, "stream", Numbers).values
    return context.decode(stream, space.numel, _given_grids(space, kinds), _DENSITY)


def _given_grids(space: Space, kinds: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The grids of the slots that are given something."""
    found = grids(space)
    begins = [begin for begin, kind in zip(space.bounds, kinds, strict=False) if kind]
    return found[np.isin(found[:, 0], begins)]


def _size(parts: Parts) -> float:
    """Bytes that the parts take on the wire, but for what every payload takes."""
    codes = take(parts, "level", Symbols).values
    counts = np.bincount(codes, minlength=256)
    frequencies = tables.normalise(counts)
    bits = float((counts * (_PRECISION - np.log2(np.maximum(frequencies, 1)))).sum())
    coded = rans.HEADER_BYTES + tables.pack_table(frequencies, MOST_LEVEL).size + bits / 8 + 1
    plain = MOST_LEVEL.bit_length() * codes.size / 8 + 1
    return take(parts, "stream", Numbers).values.size + min(coded, plain)
