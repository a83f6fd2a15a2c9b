"""Strategies around another one: what is done to each update before it, or to the merged delta after it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Additive, Broadcast, Context, Strategy, Summands, Update, check
from fedpeft.strategies.mapped import Mapped


def _inner(name: str) -> Any:
    """A property: what the strategy inside declares."""
    return property(lambda self: getattr(self.strategy, name))


@dataclass(frozen=True)
class Wrapper(Additive):
    """A strategy around another, which declares what that one declares.

    Whether it is a sum is a matter of the instance: ask `additive`, not the class.

    Args:
        strategy: the one inside.
    """

    strategy: Strategy

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, Strategy):
            raise ValueError(f"{type(self).__name__}: strategy must be a strategy, got {self.strategy!r}")

    additive, streaming, passes, least = (_inner(name) for name in ("additive", "streaming", "passes", "least"))
    needs, anchored, settles = (_inner(name) for name in ("needs", "anchored", "settles"))
    scores, rooted, offline = (_inner(name) for name in ("scores", "rooted", "offline"))

    def asks(self, number: int) -> frozenset[str]:
        """What the strategy inside asks for."""
        return self.strategy.asks(number)

    def trains(self, number: int) -> bool:
        """Whether the strategy inside lets sites train."""
        return self.strategy.trains(number)

    def check_space(self, space: Space) -> None:
        """Pass where it and the strategy inside can merge adapters of a space."""
        super().check_space(space)
        self.strategy.check_space(space)

    def settled(self, space: Space) -> frozenset[str]:
        """What the strategy inside settles."""
        return self.strategy.settled(space)

    @property
    def _sum(self) -> Additive:
        if not (self.additive and isinstance(self.strategy, Additive)):
            raise TypeError(f"{self.strategy} is not a function of sums, so {self} has no summands: use merge")
        return self.strategy


@dataclass(frozen=True)
class Before(Wrapper):
    """Something done to each update, then the strategy inside; a subclass says what, in `before`.

    One update at a time is changed, when it is read: memory is the inner strategy's.
    """

    @abstractmethod
    def before(self, update: Update, ctx: Context) -> Update:
        """The update that the strategy inside gets, which depends on this one and the context alone."""

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The inner lift of the changed update."""
        return self._sum.lift(self.before(update, ctx), ctx)

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Change each, then add it."""
        for update in updates:
            self._sum.accumulate(total, [self.before(update, ctx)], ctx)

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The inner strategy's."""
        return self._sum.finalize(total, ctx)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """What the strategy inside makes of the changed updates."""

        def changed(update: Update) -> Update:
            check([update], ctx)
            return self.before(update, ctx)

        return self.strategy.merge(Mapped(updates, changed), ctx)


@dataclass(frozen=True)
class After(Wrapper):
    """The strategy inside, then something done to what it has merged; a subclass says what, in `after`."""

    ternary, averaging = _inner("ternary"), _inner("averaging")

    @abstractmethod
    def after(self, merged: Float[Tensor, " d"], ctx: Context) -> Float[Tensor, " d"]:
        """The delta, float32, to put in the merged one's place."""

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The inner lift."""
        return self._sum.lift(update, ctx)

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """As the inner strategy adds them."""
        self._sum.accumulate(total, updates, ctx)

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The inner outcome, changed once it is a delta."""
        found = self._sum.finalize(total, ctx)
        return found if isinstance(found, Broadcast) else self.after(found, ctx)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The inner merge, changed."""
        return self.after(self.strategy.merge(updates, ctx), ctx)
