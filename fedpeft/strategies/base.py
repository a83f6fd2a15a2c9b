"""What a strategy is: many updates become one delta; most are a lift, a sum and a finish."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.statistics import check_present, statistic_space
from fedpeft.ternary import TernaryDelta

Summands: TypeAlias = Mapping[str, Tensor]

# Squares of sums of weighted deltas stay finite, however many.
_HEAVIEST = 1e100


@dataclass(frozen=True, eq=False)
class Update:
    """What one client brings to a merge.

    Args:
        sent: its delta, shape (d,), float32 and no other type, or the bit planes of a ternary one.
        weight: in (0, 1e100]; usually the number of examples trained on.
        statistics: what the strategy `needs` beyond the delta, by name, each flat in its `statistic_space`.
    """

    sent: Float[Tensor, " d"] | TernaryDelta
    weight: float = 1.0
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def delta(self) -> Float[Tensor, " d"]:
        """The delta in float32; a ternary one is written out at each call."""
        return self.sent.dense() if isinstance(self.sent, TernaryDelta) else self.sent

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the delta."""
        return (self.sent.numel,) if isinstance(self.sent, TernaryDelta) else tuple(self.sent.shape)


@dataclass(frozen=True, eq=False)
class Context:
    """What updates are merged into.

    Args:
        space: of the adapter.
        start: the adapter that the updates began at, shape (d,); None: zero, as where whole adapters are merged.
        seed: of the run.
        round: from 1.
        told: what the pass before had found; empty in the first.
    """

    space: Space
    start: Float[Tensor, " d"] | None = None
    seed: int = 0
    round: int = 0
    told: Summands = field(default_factory=dict)

    def adapter(self, update: Update) -> Float[Tensor, " d"]:
        """The client's adapter after its training."""
        return update.delta if self.start is None else self.start + update.delta

    def delta(self, adapter: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """What leads from the start to an adapter."""
        return adapter if self.start is None else adapter - self.start


@dataclass(frozen=True)
class Broadcast:
    """What a pass over the updates has found, for the next pass over them."""

    told: Summands


class Strategy(ABC):
    """A rule that makes one delta of many.

    Subclasses are frozen dataclasses. What a class declares is what its users may rely on, and is tested:

    * `additive`: it is a function of sums over clients, so that it streams, merges up a tree, and can be computed on
      masked sums;
    * `streaming`: its memory does not grow with the number of updates; so it is with every sum;
    * `passes`: how often the updates are read, in one round;
    * `needs`: names of the statistics that it takes of each update, in the rounds in which it `asks` for them;
    * `ternary`: it takes the bit planes of ternary updates without writing them out;
    * `averaging`: it knows updates by their weighted mean and the sum of their weights alone, so that some of them may
      be replaced by theirs;
    * `anchored`: it works on adapters, not on deltas alone, so all updates must have begun at the same one;
    * `settles`: it says where some parameters shall be (those of the slots `settled`), not where they shall move, so
      the server's optimizer must be SGD(lr=1.0), which goes all the way and no further;
    * `scores`: what it merges are the scores of a supermask, not weights;
    * `rooted`: it measures updates by one that is trusted, `told["root"]`: in a run, that of the node named as root;
    * `offline`: why it is for merging adapters at hand alone, and not for a run; "" where it is for both;
    * `least`: the fewest updates that it can merge.
    """

    additive: ClassVar[bool] = False
    ternary: ClassVar[bool] = False
    averaging: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    anchored: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    rooted: ClassVar[bool] = False

    @property
    def offline(self) -> str:
        """Why it cannot merge in a run; "" where it can."""
        return ""

    def check_space(self, space: Space) -> None:
        """Pass where it can merge adapters of a space; each statistic that it needs must be one of it.

        Raises:
            ValueError: says what is missing.
        """
        for name in self.needs:
            statistic_space(name, space)

    def settled(self, space: Space) -> frozenset[str]:
        """Names of the slots of which it says where they shall be."""
        return frozenset(slot.name for slot in space.slots) if self.settles else frozenset()

    def asks(self, number: int) -> frozenset[str]:
        """Names of the statistics that it takes in a round, of those that it needs; all, unless overridden."""
        return self.needs

    def trains(self, number: int) -> bool:
        """Whether sites train in a round, or only measure and send what they still owe."""
        return True

    @property
    def streaming(self) -> bool:
        """Whether memory does not grow with the number of updates."""
        return self.additive

    @property
    def passes(self) -> int:
        """How often the updates are read."""
        return 1

    @property
    def least(self) -> int:
        """The fewest updates that can be merged."""
        return 1

    @abstractmethod
    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The merged delta, float32; reading an element of `updates` may decode it anew.

        Raises:
            ValueError: there is no update, one has another size or type, or a weight is not in (0, 1e100].
        """


class Additive(Strategy):
    """A strategy that is `finalize` of the sum of every client's `lift`."""

    additive = True

    @abstractmethod
    def lift(self, update: Update, ctx: Context) -> Summands:
        """The named float64 tensors that are summed over clients; shapes depend on the context alone."""

    @abstractmethod
    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """The merged delta, float32, from the sums; or what the next pass is told."""

    def accumulate(self, total: dict[str, Tensor], updates: Sequence[Update], ctx: Context) -> None:
        """Add the lifts of updates, in order, to a total that is empty or holds those of others.

        Override it where the summands need not be made one by one.
        """
        for update in updates:
            add(total, self.lift(update, ctx))

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """Fold the updates, once for each pass."""
        check_number(self, updates)
        for _ in range(self.passes):
            fold = Fold(self, ctx)
            for group in _groups(updates, 4 * ctx.space.numel):
                fold.accumulate(*group)
            found = fold.finalize()
            if isinstance(found, Tensor):
                return found
            ctx = replace(ctx, told=found.told)
        raise TypeError(f"{self} has found no delta in its {self.passes} passes")


@dataclass
class Fold:
    """The running total of one pass of an additive strategy: constant memory, however many clients.

    Float sums depend on their order in the last bit, so a caller that promises bit-identity accumulates in node
    order (`fedpeft.federation.round` does).
    """

    strategy: Additive
    ctx: Context
    total: dict[str, Tensor] = field(default_factory=dict)

    def accumulate(self, *updates: Update) -> None:
        """Add clients, all of them or none.

        Raises:
            ValueError: a delta has another size or type, a weight is not in (0, 1e100], or a statistic is missing.
        """
        check(updates, self.ctx, self.strategy.asks(self.ctx.round))
        self.strategy.accumulate(self.total, updates, self.ctx)

    def merge(self, other: "Fold") -> None:
        """Add the total of another fold: one branch of a tree.

        Raises:
            ValueError: the other fold is of another strategy or space.
        """
        if (other.strategy, other.ctx.space) != (self.strategy, self.ctx.space):
            raise ValueError(f"cannot add a total of {other.strategy} to one of {self.strategy}, or of another space")
        add(self.total, other.total)

    def finalize(self) -> Float[Tensor, " d"] | Broadcast:
        """The merged delta, or what the next pass is told.

        Raises:
            ValueError: nobody contributed.
        """
        if not self.total:
            raise ValueError("there is nothing to merge: no client contributed")
        return self.strategy.finalize(self.total, self.ctx)


def add(total: dict[str, Tensor], summands: Summands) -> None:
    """Add summands to a total that is empty or has their names; the total shares no memory with them."""
    for name, summand in summands.items():
        if name in total:
            total[name] += summand
        else:
            total[name] = summand.to(torch.float64, copy=True)


def check_number(strategy: Strategy, updates: Sequence[Update]) -> None:
    """Pass where there are enough updates for a strategy.

    Raises:
        ValueError: there are fewer than its `least`.
    """
    if len(updates) < strategy.least:
        raise ValueError(f"{strategy} merges at least {strategy.least} updates, got {len(updates)}")


def check(updates: Sequence[Update], ctx: Context, needs: Collection[str] = ()) -> None:
    """Pass where every update may be merged, and has the statistics that are needed.

    Raises:
        ValueError: a delta has another size or type, a weight is not in (0, 1e100], or a statistic is missing.
    """
    for update in updates:
        if update.shape != (ctx.space.numel,):
            raise ValueError(f"expected a delta of shape ({ctx.space.numel},), got {update.shape}")
        if isinstance(update.sent, Tensor) and update.sent.dtype != torch.float32:
            raise ValueError(f"expected a delta of torch.float32, got {update.sent.dtype}: merge its .float()")
        if not 0 < update.weight < math.inf:
            raise ValueError(f"a weight must be positive and finite, got {update.weight}")
        if update.weight > _HEAVIEST:
            raise ValueError(
                f"a weight must be at most {_HEAVIEST:g}, so that sums stay finite, got {update.weight}: "
                "divide all of them by the largest"
            )
        check_present(needs, ctx.space, update.statistics)


def _groups(updates: Sequence[Update], most_bytes: int) -> Iterator[Sequence[Update]]:
    """All updates at once where they are in memory anyway; else as many as fill so many bytes, and at least one."""
    if isinstance(updates, list | tuple):
        if updates:
            yield updates
        return
    group, held = [], 0
    for update in updates:
        group.append(update)
        held += update.sent.nbytes
        if held >= most_bytes:
            yield group
            group, held = [], 0
    if group:
        yield group
