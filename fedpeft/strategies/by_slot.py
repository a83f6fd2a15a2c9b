"""Another strategy for each group of slots: merging by layer and by role."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Additive, Broadcast, Context, Strategy, Summands, Update, check
from fedpeft.strategies.mapped import Mapped
from fedpeft.strategies.statistics import statistic_space


def _of_each(name: str, together: Callable[[Iterator[Any]], Any]) -> Any:
    """A property: what all groups' strategies come to, of what each declares."""
    return property(lambda self: together(getattr(strategy, name) for strategy in self._all))


@dataclass(frozen=True, repr=False)
class BySlot(Additive):
    """One strategy for the slots of each pattern; made by `by_slot`.

    It declares of itself what any of its strategies declares, and is a sum where all of them are. Otherwise its groups
    are merged one after the other, and each update is read again for each group.
    """

    rules: tuple[tuple[str, Strategy], ...]
    default: Strategy

    additive, streaming, averaging = (_of_each(name, all) for name in ("additive", "streaming", "averaging"))
    anchored, settles, scores, rooted = (_of_each(name, any) for name in ("anchored", "settles", "scores", "rooted"))
    needs = _of_each("needs", lambda each: frozenset[str]().union(*each))
    offline = _of_each("offline", lambda each: next(filter(None, each), ""))
    least = _of_each("least", max)

    def __repr__(self) -> str:
        rules = ", ".join(f"{pattern!r}: {strategy!r}" for pattern, strategy in self.rules)
        return f"by_slot({{{rules}}}, default={self.default!r})"

    @property
    def _all(self) -> tuple[Strategy, ...]:
        return (*(strategy for _, strategy in self.rules), self.default)

    def asks(self, number: int) -> frozenset[str]:
        """What the groups' strategies ask for in a round."""
        return frozenset[str]().union(*(strategy.asks(number) for strategy in self._all))

    def trains(self, number: int) -> bool:
        """Whether all groups' strategies let sites train."""
        return all(strategy.trains(number) for strategy in self._all)

    def check_space(self, space: Space) -> None:
        """Pass where each pattern fits a slot, and each strategy its group.

        Raises:
            ValueError: one does not.
        """
        for _, strategy, group in _grouped(self, space):
            strategy.check_space(group)

    def settled(self, space: Space) -> frozenset[str]:
        """What the groups' strategies settle."""
        return frozenset[str]().union(*(strategy.settled(group) for _, strategy, group in _grouped(self, space)))

    @property
    def passes(self) -> int:
        """As often as the one that reads the updates most often; where they are no sum, as often as all of them."""
        each = [strategy.passes for strategy in self._all]
        return max(each) if self.additive else sum(each)

    def lift(self, update: Update, ctx: Context) -> Summands:
        """The summands of all groups that have not found their delta yet, prefixed with the group's number."""
        return {
            f"{i}.{name}": summand
            for i, strategy, group in _grouped(self, ctx.space)
            if str(i) not in ctx.told
            for name, summand in _sum(strategy)
            .lift(_part(update, ctx, strategy, group), _inside(ctx, i, group))
            .items()
        }

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """Each group's delta, under its number, where it lies in the whole; a Broadcast while one has none."""
        found: dict[str, Tensor] = {}
        for i, strategy, group in _grouped(self, ctx.space):
            if (key := str(i)) in ctx.told:
                found[key] = ctx.told[key]
                continue
            outcome = _sum(strategy).finalize(_named(total, i), _inside(ctx, i, group))
            if isinstance(outcome, Broadcast):
                found.update({f"{i}.{name}": tensor for name, tensor in outcome.told.items()})
            else:
                found[key] = outcome
        if any("." in key for key in found):
            return Broadcast(found)
        return self._together(found, ctx)

    def merge(self, updates: Sequence[Update], ctx: Context) -> Float[Tensor, " d"]:
        """The groups' merges, each in its own space."""
        if self.additive:
            return super().merge(updates, ctx)
        found = {
            str(i): strategy.merge(_parts(updates, ctx, strategy, group), _inside(ctx, i, group))
            for i, strategy, group in _grouped(self, ctx.space)
        }
        return self._together(found, ctx)

    def _together(self, found: Mapping[str, Tensor], ctx: Context) -> Float[Tensor, " d"]:
        merged = torch.empty(ctx.space.numel)
        for i, _, group in _grouped(self, ctx.space):
            ctx.space.put(found[str(i)], group, merged)
        return merged


def by_slot(rules: Mapping[str, Strategy], *, default: Strategy) -> Strategy:
    """A strategy that merges slots differently: `by_slot({"lora_A": Mean(), "*.score.*": TIES()}, default=Mean())`.

    >>> from fedpeft.strategies.mean import Mean
    >>> by_slot({"head": Mean()}, default=Mean())
    by_slot({'head': Mean()}, default=Mean())

    Args:
        rules: strategy by role, or by a pattern of the slot's name with `*`; the first that fits counts. A pattern
            that fits no slot is an error, when updates are merged.
        default: strategy of the slots that no pattern fits.

    Raises:
        ValueError: something is no pattern or no strategy.
    """
    if not isinstance(rules, Mapping) or not all(isinstance(pattern, str) for pattern in rules):
        raise ValueError(f"by_slot: expected a mapping of patterns to strategies, got {rules!r}")
    for pattern, strategy in [*rules.items(), ("default", default)]:
        if not isinstance(strategy, Strategy):
            raise ValueError(f"by_slot: expected a strategy for {pattern!r}, got {strategy!r}")
    return BySlot(tuple(rules.items()), default)


@lru_cache(maxsize=64)
def _grouped(strategy: BySlot, space: Space) -> tuple[tuple[int, Strategy, Space], ...]:
    """Number, strategy and space of every group that has a slot; a slot belongs to the first pattern that fits."""
    groups = space.groups([pattern for pattern, _ in strategy.rules])
    for (pattern, _), group in zip(strategy.rules, groups, strict=False):
        if group is None:
            raise ValueError(
                f"by_slot: the pattern {pattern!r} fits no slot that an earlier one left, of "
                f"{[slot.name for slot in space.slots][:3]} and {max(0, len(space.slots) - 3)} more"
            )
    choices = strategy._all
    return tuple((i, choice, group) for i, (choice, group) in enumerate(zip(choices, groups, strict=True)) if group)


def _sum(strategy: Strategy) -> Additive:
    if not (strategy.additive and isinstance(strategy, Additive)):
        raise TypeError(f"{strategy} is not a function of sums, so its group has no summands: use merge")
    return strategy


def _named(tensors: Summands, group: int) -> dict[str, Tensor]:
    """Those of a group, by their own names."""
    prefix = f"{group}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _inside(ctx: Context, number: int, group: Space) -> Context:
    """What a group's updates are merged into."""
    start = None if ctx.start is None else ctx.space.take(ctx.start, group)
    return replace(ctx, space=group, start=start, told=_named(ctx.told, number))


def _part(update: Update, ctx: Context, strategy: Strategy, group: Space) -> Update:
    """A group's share of an update, with the statistics that its strategy asks for."""
    statistics = {
        name: statistic_space(name, ctx.space).take(update.statistics[name], statistic_space(name, group))
        for name in sorted(strategy.asks(ctx.round))
    }
    return replace(update, sent=ctx.space.take(update.delta, group), statistics=statistics)


def _parts(updates: Sequence[Update], ctx: Context, strategy: Strategy, group: Space) -> Sequence[Update]:
    """A group's share of each update, checked and made when it is read."""

    def part(update: Update) -> Update:
        check([update], ctx, strategy.asks(ctx.round))
        return _part(update, ctx, strategy, group)

    return Mapped(updates, part)
