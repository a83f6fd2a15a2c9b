"""A classifier's head solved for, not averaged: the same however classes are spread over sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Slot, Space
from fedpeft.strategies.base import Broadcast, Context, Summands, Update, add, check
from fedpeft.strategies.statistics import head_slots, statistic_space
from fedpeft.strategies.wrapping import Wrapper

_PREFIX = "ridge_head."


@dataclass(frozen=True)
class RidgeHead(Wrapper):
    """The merge of another strategy, with linear heads replaced by the ridge regression of all sites' examples.

    Fed3R (Fanì, Camoriano, Caputo and Ciccone, 2024, arXiv 2406.01116): W = (sum_k A_k + ridge I)^-1 sum_k b_k, with
    A_k the sum of u u^T and b_k that of u e_y^T over site k's examples, u = [x, 1] the head's inputs. Sums over
    examples do not care where an example lies, so the head is the one that the data in one place would give, where
    averaged heads fail: a site pushes down the classes that it has never seen. Here the regression is solved anew in
    every `every`-th round, on the inputs that the round's adapter gives. Sites do not train in it, so that those inputs
    stay what they are; in the other rounds they train, head and all, and the strategy inside merges. A class that no
    site has gets zeros.

    Regression gives numbers between 0 and 1, from which a softmax is almost flat: they are multiplied by `scale`.
    The sums tell a site's mean input of each class and how inputs vary: far more of its data than an update does.

    Args:
        strategy: merges everything else.
        every: rounds from one regression to the next, at least 2; let it divide the number of rounds, so that the last
            one is a regression.
        ridge: of the mean square of an input, > 0.
        scale: of the head, > 0.
    """

    anchored: ClassVar[bool] = True  # type: ignore[misc]
    settles: ClassVar[bool] = True  # type: ignore[misc]

    every: int = 4
    ridge: float = 1e-4
    scale: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.every) is not int or self.every < 2:
            raise ValueError(f"every must be at least 2, got {self.every!r}")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge must be positive and finite, got {self.ridge}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @property
    def ternary(self) -> bool:  # type: ignore[override]
        """Whether the strategy inside takes bit planes as they are."""
        return self.strategy.ternary

    @property
    def passes(self) -> int:
        """As often as the strategy inside reads the updates, and once more where that is no sum."""
        return self.strategy.passes + (not self.additive)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The head's sums, and what the strategy inside takes."""
        return self.strategy.needs | {"head"}

    def settled(self, space: Space) -> frozenset[str]:
        """The heads, and what the strategy inside settles."""
        heads = {name for slot in head_slots(space) for name in (slot.name, _bias(space, slot)) if name}
        return self.strategy.settled(space) | heads

    def asks(self, number: int) -> frozenset[str]:
        """The head's sums in every `every`-th round alone."""
        inside = self.strategy.asks(number)
        return inside | {"head"} if number % self.every == 0 else inside

    def trains(self, number: int) -> bool:
        """In all other rounds."""
        return number % self.every != 0 and self.strategy.trains(number)

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The inner lift, the weight, and the weighted sums over the head's inputs."""
        summands = dict(self._sum.lift(update, ctx))
        if "head" in self.asks(ctx.round):
            summands |= self._sums(update)
        return summands

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """As the inner strategy adds them, and the head's sums."""
        self._sum.accumulate(total, updates, ctx)
        if "head" in self.asks(ctx.round):
            for update in updates:
                add(total, self._sums(update))

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The inner outcome; in it, once it is a delta, the head."""
        found = self._sum.finalize(total, ctx)
        if isinstance(found, Broadcast) or _PREFIX + "sums" not in total:
            return found
        return self._with_head(found, total, ctx)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The inner merge; in it the head, for which the updates are read once more where that is no sum."""
        if self.additive:
            return super().merge(updates, ctx)
        merged, total = self.strategy.merge(updates, ctx), dict[str, Tensor]()
        if "head" not in self.asks(ctx.round):
            return merged
        for update in updates:
            check([update], ctx, {"head"})
            add(total, self._sums(update))
        return self._with_head(merged, total, ctx)

    def _sums(self, update: Update) -> dict[str, Tensor]:
        weight = torch.tensor(update.weight, dtype=torch.float64)
        return {_PREFIX + "sums": update.statistics["head"].double() * weight, _PREFIX + "weight": weight}

    def _with_head(self, merged: Float[Tensor, " d"], total: Summands, ctx: Context) -> Float[Tensor, " d"]:
        own, mean = statistic_space("head", ctx.space), total[_PREFIX + "sums"] / total[_PREFIX + "weight"]
        adapter = (merged if ctx.start is None else ctx.start + merged).clone()
        for slot in head_slots(ctx.space):
            sums = own.view(mean, slot.name)
            width = sums.shape[1]
            # Rounding may leave a Gram a little less than nothing in some direction.
            pull = max(self.ridge / width, 2.0**-20) * float(sums[:width].trace()) or 1.0
            solved = torch.linalg.solve(sums[:width] + pull * torch.eye(width, dtype=torch.float64), sums[width:].T).T
            head = self.scale * solved
            ctx.space.view(adapter, slot.name).copy_(head[:, :-1])
            if bias := _bias(ctx.space, slot):
                ctx.space.view(adapter, bias).copy_(head[:, -1])
        return ctx.delta(adapter)


def _bias(space: Space, weight: Slot) -> str:
    """The name of the slot that is a head's bias, "" where it has none."""
    bias = Slot(weight.name.removesuffix("weight") + "bias", weight.shape[:1], weight.role)
    return bias.name if bias in space.slots else ""
