"""Another strategy for each group of slots: merging by layer and by role."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Additive, Broadcast, Context, Strategy, Summands, Update, check
from fedpeft.strategies.mapped import Mapped
from fedpeft.strategies.statistics import statistic_space


@dataclass(frozen=True, repr=False)
class BySlot(Additive):
    """One strategy for the slots of each pattern; made by `by_slot`.

    It declares of itself what any of its strategies declares, and is a sum where all of them are. Otherwise its groups
    are merged one after the other, and each update is read again for each group.
    """

    rules: tuple[tuple[str, Strategy], ...]
    default: Strategy

    def __repr__(self) -> str:
        rules = ", ".join(f"{pattern!r}: {strategy!r}" for pattern, strategy in self.rules)
        return f"by_slot({{{rules}}}, default={self.default!r})"

    @property
    def _all(self) -> tuple[Strategy, ...]:
        return (*(strategy for _, strategy in self.rules), self.default)

    @property
    def additive(self) -> bool:  # type: ignore[override]
        """Whether every group's strategy is a function of sums."""
        return all(strategy.additive for strategy in self._all)

    @property
    def streaming(self) -> bool:
        """Whether every group's strategy does."""
        return all(strategy.streaming for strategy in self._all)

    @property
    def averaging(self) -> bool:  # type: ignore[override]
        """Whether all of them know updates by their mean alone."""
        return all(strategy.averaging for strategy in self._all)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any of them takes of an update beyond its delta."""
        return frozenset[str]().union(*(strategy.needs for strategy in self._all))

    def asks(self, number: int) -> frozenset[str]:
        """What the groups' strategies ask for in a round."""
        return frozenset[str]().union(*(strategy.asks(number) for strategy in self._all))

    def trains(self, number: int) -> bool:
        """Whether all groups' strategies let sites train."""
        return all(strategy.trains(number) for strategy in self._all)

    @property
    def offline(self) -> str:
        """Why one of them cannot merge in a run."""
        return next((why for strategy in self._all if (why := strategy.offline)), "")

    @property
    def rooted(self) -> bool:  # type: ignore[override]
        """Whether any of them goes by a trusted update."""
        return any(strategy.rooted for strategy in self._all)

    @property
    def scores(self) -> bool:  # type: ignore[override]
        """Whether any of them merges scores."""
        return any(strategy.scores for strategy in self._all)

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
    def settles(self) -> bool:  # type: ignore[override]
        """Whether any group's strategy says where parameters shall be."""
        return any(strategy.settles for strategy in self._all)

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        """Whether any of them works on adapters."""
        return any(strategy.anchored for strategy in self._all)

    @property
    def passes(self) -> int:
        """As often as the one that reads the updates most often; where they are no sum, as often as all of them."""
        each = [strategy.passes for strategy in self._all]
        return max(each) if self.additive else sum(each)

    @property
    def least(self) -> int:
        """The fewest updates that all of them can merge."""
        return max(strategy.least for strategy in self._all)

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
