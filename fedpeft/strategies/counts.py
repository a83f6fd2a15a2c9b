"""Rules of order and majority on ternary updates: functions of how many are above zero, and how many below."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Context, Summands, Update
from fedpeft.strategies.folding import Ballot, add_by_sign, zeros
from fedpeft.strategies.planes import mean_magnitudes
from fedpeft.strategies.votes import lead
from fedpeft.ternary import TernaryDelta


@dataclass(frozen=True)
class _Counts(Additive):
    """Sums of counts, and of each client's scale in each slot.

    Every update is taken as ternary, s_k sgn(x), where s_k is the mean magnitude of what is not zero in the slot; and
    all as of one scale s, the weighted mean of the s_k of those who have anything but zeros there. Weights that differ
    by less than 1e-12 of both are equal, so that .1, .2 and .3 elect what 1, 2 and 3 do.
    """

    ternary: ClassVar[bool] = True

    def lift(self, update: Update, ctx: Context) -> Summands:
        """Whose votes are above zero and whose below; the scale of each slot."""
        x, scales = update.delta.double(), _sizes(update, ctx)
        return {
            "weight_plus": (x > 0).double().mul_(update.weight),
            "weight_minus": (x < 0).double().mul_(update.weight),
            "weight": torch.tensor(update.weight, dtype=torch.float64),
            "scale": scales * update.weight,
            "weight_scale": (scales > 0).double().mul_(update.weight),
        }

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Add all of them block by block, and ternary ones from their bit planes."""
        if not total:
            slots, none = torch.zeros(len(ctx.space.slots), dtype=torch.float64), zeros(ctx.space.numel)
            total |= {"weight_plus": none, "weight_minus": none.clone(), "weight": torch.zeros((), dtype=torch.float64)}
            total |= {"scale": slots, "weight_scale": slots.clone()}
        weights = [update.weight for update in updates]
        values = zeros(ctx.space.numel), zeros(ctx.space.numel)
        add_by_sign(Ballot(*values, total["weight_plus"], total["weight_minus"]), updates, weights, weights)
        for update in updates:
            sizes = _sizes(update, ctx)
            total["weight"] += update.weight
            total["scale"] += sizes * update.weight
            total["weight_scale"] += (sizes > 0).double().mul_(update.weight)

    def _scale(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The common scale s of each coordinate's slot."""
        sizes = torch.tensor([slot.numel for slot in ctx.space.slots])
        lengths = total["scale"] / total["weight_scale"].clamp(min=torch.finfo(torch.float64).tiny)
        return lengths.repeat_interleave(sizes)


@dataclass(frozen=True)
class TernaryMedian(_Counts):
    """The weighted median of each coordinate, on ternary updates of one scale.

    The coordinate-wise median of Yin, Chen, Ramchandran and Bartlett, 2018, arXiv 1803.01498, definition 1, needs all n
    values, which is no sum. Of values in {-s, 0, s} it is: with weights W+ and W- of a total W it is s where
    W+ > W / 2, -s where W- > W / 2, and half of that where it is exactly W / 2, as numpy's median is the mean of the
    middle two.

    Less than half of the weight decides nothing. But where no sign has half of all clients it makes no step, and on
    sparse updates that is nearly everywhere.

    Every update is taken as ternary, s_k sgn(x) with s_k the mean magnitude of what is not zero in a slot; s is the
    weighted mean of the s_k, the only thing here that one client can move without bound.

    >>> from fedpeft.space import Slot, Space
    >>> rows = torch.tensor([[2.0, 2.0], [2.0, -2.0], [2.0, 0.0], [-2.0, 0.0], [-2.0, 2.0]])
    >>> TernaryMedian().merge([Update(row) for row in rows], Context(Space((Slot("a", (2,), "head"),))))
    tensor([2., 0.])
    """

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """Which side has half."""
        half = total["weight"] / 2
        plus, minus = (lead(total[name], half).sign_() for name in ("weight_plus", "weight_minus"))
        return ((plus - minus) / 2 * self._scale(total, ctx)).float()


@dataclass(frozen=True)
class TernaryTrimmedMean(_Counts):
    """The mean of each coordinate without its largest and smallest values, on ternary updates of one scale.

    The coordinate-wise trimmed mean of Yin, Chen, Kannan and Bartlett, 2018, arXiv 1803.01498, definition 2, as a
    function of counts: with weights W+, W- and W, and b of it cut off at either end, b = fraction * W, what is left of
    the positive is clip(W+ - b, 0, W - 2 b), of the negative likewise, and their difference over W - 2 b, times s, is
    the mean. Weights are cut through; scipy's `trim_mean` rounds the number of clients down.

    Every update is taken as ternary, as in `TernaryMedian`. At fraction 0 it is the mean of the signs times s.

    >>> from fedpeft.space import Slot, Space
    >>> rows = torch.tensor([[2.0], [2.0], [2.0], [0.0], [-2.0]])
    >>> TernaryTrimmedMean(0.2).merge([Update(row) for row in rows], Context(Space((Slot("a", (1,), "head"),))))
    tensor([1.3333])

    Args:
        fraction: of the weight, cut off at either end, in [0, 0.5).
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 0.5:
            raise ValueError(f"fraction must lie in [0, 0.5), got {self.fraction}")

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """What is left on either side."""
        cut = self.fraction * float(total["weight"])
        left = float(total["weight"]) - 2 * cut
        sides = total["weight_plus"], total["weight_minus"]
        plus, minus = (lead(votes, cut).clamp_(0, left) for votes in sides)
        difference = (plus - minus).masked_fill_(lead(*sides) == 0, 0.0)
        return (difference / left * self._scale(total, ctx)).float()


@dataclass(frozen=True)
class Majority(_Counts):
    """Each coordinate's sign by majority vote, times one scale.

    signSGD with majority vote (Bernstein, Wang, Azizzadenesheli and Anandkumar, 2018, arXiv 1802.04434, algorithm 2):
    sgn(sum_k sgn(x_k)), where the paper's step is a learning rate: `scale`. Here votes have weights, and a tie makes no
    step. However long a delta is, it is one vote; unlike TIES, a majority over few voters moves as far as one over all.

    >>> from fedpeft.space import Slot, Space
    >>> rows = torch.tensor([[9.0, 0.0], [-1.0, -2.0], [-2.0, 0.0]])
    >>> Majority(scale=0.5).merge([Update(row) for row in rows], Context(Space((Slot("a", (2,), "head"),))))
    tensor([-0.5000, -0.5000])

    Args:
        scale: the size of every step, > 0; None: of each slot the weighted mean of the clients' mean magnitudes of what
            is not zero, which a client can move without bound.
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, or None, got {self.scale}")

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        """The sign of the difference."""
        sign = lead(total["weight_plus"], total["weight_minus"]).sign_()
        return (sign * (self._scale(total, ctx) if self.scale is None else self.scale)).float()


def _sizes(update: Update, ctx: Context) -> Float[Tensor, " m"]:
    """Of each slot the mean magnitude of what is not zero; 0 where all is."""
    if isinstance(update.sent, TernaryDelta):
        return torch.from_numpy(mean_magnitudes(update.sent, ctx.space.bounds))
    parts = (update.sent[begin:end].double() for begin, end in pairwise(ctx.space.bounds))
    sizes = [float(x.abs().sum()) / max(1, int(torch.count_nonzero(x))) for x in parts]
    return torch.tensor(sizes, dtype=torch.float64)
