"""What a strategy of a run means where whole adapters are merged: asked of it, and of every strategy inside it."""

from collections.abc import Iterator

from fedpeft.merging.settings import whole
from fedpeft.space import Space
from fedpeft.strategies import (
    Bulyan,
    FlexLoRA,
    GeometricMedian,
    IsoC,
    Krum,
    Mean,
    Median,
    RankAllocation,
    Scaled,
    SeenMean,
    Strategy,
    SubspaceStep,
    TrimmedMean,
)
from fedpeft.strategies.by_slot import BySlot
from fedpeft.strategies.cohort import ByProduct
from fedpeft.strategies.lora import modules, products_of
from fedpeft.strategies.wrapping import After, Wrapper

# They do not care where zero is, in slots that are no LoRA factor.
_SAFE = Mean, Median, TrimmedMean, GeometricMedian, Krum, Bulyan, SeenMean, ByProduct, SubspaceStep
# What they do to an outcome, they do to LoRA factors alone.
_TO_FACTORS = IsoC, RankAllocation


def check_usable(strategy: Strategy) -> None:
    """Pass where adapters alone are enough for a strategy.

    Raises:
        ValueError: it needs somebody's data, or the scores of a supermask.
    """
    needs = sorted(strategy.needs | ({"root"} if strategy.rooted else set()))
    if needs:
        raise ValueError(
            f"{strategy} needs {' and '.join(map(repr, needs))} of somebody's data, which no adapter's folder holds; "
            "choose a strategy that needs the adapters alone, such as TIES() or FlexLoRA()"
        )
    if strategy.scores:
        raise ValueError(
            f"{strategy} merges the scores of a supermask by their order, and an adapter's numbers are weights; choose "
            "a strategy of weights, such as Mean() or TIES()"
        )


def check_space(strategy: Strategy, space: Space, *, start: bool) -> None:
    """Pass where a strategy can merge the adapters of a space.

    Args:
        strategy: to be used.
        space: of the adapters.
        start: what is merged is what training has changed since then.

    Raises:
        ValueError: there is nothing that it merges, or a factor of the way from a start leads nowhere.
    """
    strategy.check_space(space)
    for one, group in _everywhere(strategy, space):
        if start and isinstance(one, Scaled) and one.factor != 1 and one.strategy.settled(group):
            raise ValueError(
                f"{one}: {one.strategy} says where the factors of a product shall be, and {one.factor:g} times the way "
                "there from a start leads to another product; leave out the start (--start), or the factor"
            )


def ranks_wanted(strategy: Strategy, space: Space) -> dict[str, int]:
    """The rank that a strategy names for each layer, where it names one."""
    if isinstance(strategy, FlexLoRA):
        return {} if strategy.rank is None else {module.name: strategy.rank for module in modules(space)}
    return {name: rank for one, group in _inside(strategy, space) for name, rank in ranks_wanted(one, group).items()}


def goes_by_products(strategy: Strategy, space: Space) -> bool:
    """Whether it merges LoRA factors with zeros beside them as it merges those without."""
    if isinstance(strategy, BySlot):
        factors = products_of(space)
        groups = _inside(strategy, space)
        return all(goes_by_products(one, group) for one, group in groups if factors & {s.name for s in group.slots})
    if isinstance(strategy, After):
        return goes_by_products(strategy.strategy, space)
    return isinstance(strategy, ByProduct | SubspaceStep)


def doubtful(strategy: Strategy, space: Space) -> tuple[str, ...]:
    """The slots of whole weights, such as a head, that a strategy takes for changes from zero."""
    if isinstance(strategy, _SAFE):
        return ()
    kept = isinstance(strategy, Scaled) and strategy.factor == 1
    if isinstance(strategy, (*_TO_FACTORS, BySlot)) or kept:
        return tuple(sorted(name for one, group in _inside(strategy, space) for name in doubtful(one, group)))
    return whole(space)


def _inside(strategy: Strategy, space: Space) -> tuple[tuple[Strategy, Space], ...]:
    """The strategies that one is made of, each with the slots that it merges."""
    if isinstance(strategy, Wrapper):
        return ((strategy.strategy, space),)
    if isinstance(strategy, BySlot):
        groups = space.groups([pattern for pattern, _ in strategy.rules])
        rules = *(rule for _, rule in strategy.rules), strategy.default
        return tuple((rule, group) for rule, group in zip(rules, groups, strict=True) if group)
    return ()


def _everywhere(strategy: Strategy, space: Space) -> Iterator[tuple[Strategy, Space]]:
    yield strategy, space
    for one, group in _inside(strategy, space):
        yield from _everywhere(one, group)
