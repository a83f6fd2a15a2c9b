"""A strategy and an election beside it: clients vote while their updates are read, and what lost is taken out."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Broadcast, Context, Summands, Update, check_number
from fedpeft.strategies.wrapping import Wrapper


@dataclass(frozen=True)
class Voted(Wrapper):
    """The strategy inside, and sums of votes; a subclass says what a client votes for, and what becomes of the merge.

    A client has one vote for each thing, whatever its weight.
    """

    @abstractmethod
    def votes(self, update: Update, ctx: Context) -> Float[Tensor, " c"]:
        """One for each thing that the client approves of, else zero; float64."""

    @abstractmethod
    def after(self, merged: Float[Tensor, " d"], votes: Float[Tensor, " c"], ctx: Context) -> Float[Tensor, " d"]:
        """The merged delta without what lost."""

    @property
    def passes(self) -> int:
        """As often as the strategy inside reads the updates, and once more where that is no sum."""
        return self.strategy.passes + (not self.additive)

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The inner lift, and the votes."""
        return {**self._sum.lift(update, ctx), repr(self): self.votes(update, ctx)}

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """As the inner strategy adds them, and the votes."""
        inner = {name: summand for name, summand in total.items() if name != repr(self)}
        self._sum.accumulate(inner, updates, ctx)
        votes = self.tally(updates, ctx)
        total |= inner | {repr(self): total[repr(self)] + votes if repr(self) in total else votes}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The inner outcome; once it is a delta, without what lost."""
        found = self._sum.finalize({name: summand for name, summand in total.items() if name != repr(self)}, ctx)
        return found if isinstance(found, Broadcast) else self.after(found, total[repr(self)], ctx)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The inner merge, which reads the updates by itself, and one more reading for the votes."""
        if self.additive:
            return super().merge(updates, ctx)
        check_number(self, updates)
        merged = self.strategy.merge(updates, ctx)
        return self.after(merged, self.tally(updates, ctx), ctx)

    def tally(self, updates: Iterable[Update], ctx: Context) -> Float[Tensor, " c"]:
        """The votes of all."""
        total = torch.zeros(1, dtype=torch.float64)
        for update in updates:
            total = total + self.votes(update, ctx)
        return total
