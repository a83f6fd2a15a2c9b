"""Uniform scalar quantisation with a dead zone, at as many bits for each number as are asked for."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, Symbols, finite, take
from fedpeft.codecs.scale import Scale, check_scale, scales
from fedpeft.codecs.scaled import longest_step, scaled
from fedpeft.space import Space


@dataclass(frozen=True)
class DeadZone(Codec):
    """Round to multiples of the step at which the wire takes `bits` a number: x^ = s step (k + shift).

    The uniform quantiser for an entropy coder, whose interval around zero is wider than the others and whose points
    are the means of their numbers rather than the middles of their intervals (Sullivan, "Efficient scalar quantization
    of exponential and Laplacian random variables", IEEE Transactions on Information Theory 42, 1996). Zero's interval
    is 1.1 steps wide here; k = 1, the last k, to which all that is larger is clamped, and those between have a shift
    each. The scale s is

    * "norm": ||x^|| = ||x||;
    * "mean": <x^, x> / ||x^||^2, which minimises ||x - x^||;
    * "unbiased": <x^, x> = ||x||^2, as in `Rotated`, without its random rotation.

    One step for all slots makes the squared error of the whole least. A slot far smaller than the others, as an
    adapter's B may be, then gets few bits or none; with `step="slot"` a slot's step goes by its root mean square, and
    all have the same relative error. ||x - x^|| / ||x|| with "mean":

    | bits                             | 0.5 | 1   | 2   | 3    | 4    | 6    |
    |----------------------------------|-----|-----|-----|------|------|------|
    | normal numbers                   | .79 | .59 | .30 | .149 | .075 | .019 |
    | a trained LoRA, one step for all | .70 | .50 | .27 | .138 | .069 | .017 |
    | the same, a step a slot          | .80 | .59 | .30 | .149 | .075 | .019 |

    At low rates it is a ternary code. Its error at equal bytes is that of `Ternary` for independent numbers, but up to
    8 % more for that LoRA below 1.3 bits, since the wire codes a mask by bytes of eight neighbours. From 1.5 bits on it
    is less: by 4 % for normal numbers, by 30 % and more for the LoRA.

    `bits` counts the codes with their frequency table, steps and shifts, not the header of the payload. There may be
    fewer where the numbers are few or differ little, or where a smaller step would clamp more than it gains.

    >>> from fedpeft.space import Slot
    >>> space, ctx = Space((Slot("a", (8,), "head"),)), Context()
    >>> codec, x = DeadZone(bits=1.5, scale="mean"), Tensor([4.0, 0.5, 0.0, 0.0, -4.0, 0.0, -0.5, 0.0])
    >>> codec.decode(codec.encode(x, space, ctx), space, ctx).round()
    tensor([ 4.,  0.,  0.,  0., -4.,  0.,  0.,  0.])

    Args:
        bits: for each parameter, 0.1 to 6.
        scale: which s.
        step: "global" or "slot".
    """

    bits: float = 2.0
    scale: Scale = "norm"
    step: Literal["global", "slot"] = "global"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int | float) or not 0.1 <= self.bits <= 6:
            raise ValueError(f"bits must lie in [0.1, 6], got {self.bits!r}")
        check_scale(self.scale)
        if self.step not in ("global", "slot"):
            raise ValueError(f"step must be 'global' or 'slot', got {self.step!r}")

    @property
    def _half(self) -> int:
        """The largest multiple; an alphabet no larger than its rate needs keeps the coder's table small."""
        return min(127, (16 << ceil(max(1.0, self.bits))) - 1)

    def _edges(self, space: Space) -> NDArray[np.int64]:
        return np.array(space.bounds if self.step == "slot" else (0, space.numel))

    def _rate(self, space: Space) -> float:
        """Bits that are left for each code, nine tenths of them at least."""
        beside = 8 * (kernels.rans.HEADER_BYTES + 4 * (len(self._edges(space)) + 2)) + 4 * (2 * self._half + 1)
        return self.bits - min(beside / max(1, space.numel), self.bits / 10)

    def layout(self, space: Space) -> Layout:
        """Steps, how far points lie from multiples (the first, those between, the last), and a code a coordinate."""
        return {
            "step": Field("numbers", len(self._edges(space)) - 1),
            "shift": Field("numbers", 3),
            "code": Field("symbols", space.numel, levels=2 * self._half + 1),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Find the step on a histogram, round, and put the points where their numbers are."""
        x, edges = finite(delta), self._edges(space)
        sizes = np.diff(edges)
        units = np.sqrt(kernels.block_squares(x, edges) / np.maximum(sizes, 1))
        codes, step, counts, totals = kernels.quantise_to_rate(x, edges, units, self._rate(space), self._half)
        shift = _shifts(counts.sum(axis=0), totals.sum(axis=0))
        points = _points(shift, self._half)
        steps = scales(self.scale, sizes / step**2, totals @ points, counts @ points**2) * step * units
        largest = points[np.flatnonzero(counts.any(axis=0)).max(initial=0)]
        steps = np.minimum(steps, longest_step(max(1.0, largest))).astype(np.float32)
        return {
            "step": Numbers(steps),
            "shift": Numbers(shift),
            "code": Symbols(codes, 2 * self._half + 1),
        }

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply points by steps.

        Raises:
            PayloadError: a step is beyond what a float32 delta can have.
        """
        steps, shift = take(parts, "step", Numbers).values, take(parts, "shift", Numbers).values
        codes = take(parts, "code", Symbols).values
        points = _points(shift, self._half)
        # Only what occurs is held against float32's range.
        points[max(int(codes.max(initial=0)) - self._half, self._half - int(codes.min(initial=255)), 0) + 1 :] = 0
        both = np.concatenate([-points[:0:-1], points]).astype(np.float32)
        return scaled(codes, self._edges(space), both, steps)


def _shifts(counts: NDArray[np.int64], totals: NDArray[np.float64]) -> NDArray[np.float32]:
    """How much more than a multiple its numbers are on average: the first, those between, and the last, clamped one."""
    beyond = totals - counts * np.arange(counts.size)
    seen = [counts[1], counts[2:-1].sum(), counts[-1]]
    return np.array(
        [b / n if n else 0.0 for b, n in zip([beyond[1], beyond[2:-1].sum(), beyond[-1]], seen, strict=True)],
        np.float32,
    )


def _points(shift: NDArray[np.float32], half: int) -> NDArray[np.float64]:
    """What the multiples 0 to `half` stand for, in steps."""
    points = np.arange(half + 1, dtype=np.float64)
    points[1] += shift[0]
    points[2:-1] += shift[1]
    points[-1] += shift[2]
    return points
