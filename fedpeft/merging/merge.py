"""Merging folders: by a strategy, or exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedpeft.adapters import Adapter
from fedpeft.errors import FedpeftError, SpaceError
from fedpeft.merging.form import Form
from fedpeft.merging.merged import Merged
from fedpeft.merging.rules import (
    check_space,
    check_usable,
    doubtful,
    goes_by_products,
    ranks_wanted,
)
from fedpeft.merging.settings import of_products
from fedpeft.merging.sources import Sources, check_alike
from fedpeft.merging.survey import survey
from fedpeft.strategies import Context, Factors, Strategy, Update, stacked
from fedpeft.strategies.factors import shares_of
from fedpeft.strategies.lora import Module, modules, rest, scaling


def merge_adapters(
    folders: Sequence[Path],
    strategy: Strategy,
    weights: Sequence[float] | None = None,
    *,
    start: Path | None = None,
    base: str | None = None,
    seed: int = 0,
) -> Merged:
    """The adapter that a strategy makes of others; the base model is not needed.

    Whole adapters are merged: to the strategy each is a delta from zero. With a start it is what training has changed
    since then, as in a round. A rule that drops or shrinks what it merges needs a start where slots are whole weights,
    as a head is; `Merged.doubtful` names them.

    LoRA adapters that differ in rank or alpha alone are merged by strategies that go by products (FlexLoRA, KnOTS,
    SubspaceStep, what is done to the outcome of these, and a `by_slot` that gives them every product); the result has
    the highest rank, or that of `FlexLoRA(rank=...)`, which is taken at its word wherever adapters are whole. So is a
    factor: `Scaled` around such a strategy gives that many times the product.

    Each folder is read once to be checked and once for each pass of the strategy. An additive strategy has one adapter
    and its sums in memory, whatever the number of folders; others say what they hold.

    Args:
        folders: of the adapters; their order counts where it does for the strategy (OPCM).
        strategy: merges; not one that needs statistics of a site's data.
        weights: one for each, > 0; None: all 1.
        start: the folder of an adapter that all were fine-tuned from.
        base: the name of the base model of all, where their configs name it differently.
        seed: of strategies that draw at random.

    Raises:
        ValueError: the strategy cannot be used here, or a weight is missing or not positive and finite.
        SpaceError: a folder is not as PEFT writes it, or the adapters do not fit each other; the message says where.
        FedpeftError: the outcome is not finite.
    """
    check_usable(strategy)
    sources = survey(folders, weights, start, base)
    check_space(strategy, sources.form.space, start=start is not None)
    form, wanted = _forms(sources, strategy)
    sources = replace(sources, form=form)
    ctx = Context(form.space, sources.start, seed)
    delta = strategy.merge(sources, ctx)
    if not torch.isfinite(delta).all():
        raise FedpeftError(f"{strategy} makes values that are not finite of these adapters; choose another strategy")
    adapter = form.adapter(ctx.adapter(Update(delta)))
    if wanted is not form:
        adapter = wanted.adapter(wanted.fitted(adapter))
    noted = () if start is not None else doubtful(strategy, form.space)
    return Merged(adapter, repr(strategy), sources, ctx, delta, doubtful=noted)


def stack_adapters(
    folders: Sequence[Path], weights: Sequence[float] | None = None, *, base: str | None = None
) -> Merged:
    """The adapter whose LoRA products are exactly the weighted mean of those of others, of any rank and alpha.

    It has all their components beside each other (`fedpeft.strategies.stacked`), so it is as large as all of them
    together; what is in no product, such as a head, is the weighted mean. In memory are all adapters and the result.

    Args:
        folders: of LoRA adapters of the same layers.
        weights: one for each, > 0; None: all 1.
        base: the name of the base model of all, where their configs name it differently.

    Raises:
        ValueError: a weight is missing or not positive and finite.
        SpaceError: a folder is not as PEFT writes it, or the adapters do not fit each other; the message says where.
    """
    sources = survey(folders, weights, None, base)
    form = sources.form.with_ranks({name: sum(ranks) for name, ranks in _ranks(sources).items()})
    adapters = [sources.read(i) for i in range(len(sources))]
    vector = torch.zeros(form.space.numel)
    given = [row.weight for row in sources.rows]
    for name in rest(form.space):
        mean = form.space.view(vector, name)
        for adapter, share in zip(adapters, shares_of(given), strict=True):
            mean += adapter.space.view(adapter.vector, name) * share
    for module in modules(form.space):
        found = stacked([_factors(adapter, module) for adapter in adapters], given, module.scaling)
        form.space.view(vector, module.b).copy_(found.b)
        form.space.view(vector, module.a).copy_(found.a)
    what = "the exact mean of products"
    return Merged(form.adapter(vector), what, replace(sources, form=form), Context(form.space), vector, exact=True)


def _forms(sources: Sources, strategy: Strategy) -> tuple[Form, Form]:
    """In which form adapters are merged, and in which the outcome is given."""
    form, wanted = sources.form, ranks_wanted(strategy, sources.form.space)
    own = {module.name: module.rank for module in modules(form.space)}
    if sources.start is not None and any(rank > own[name] for name, rank in wanted.items()):
        raise ValueError(
            f"{strategy} asks for a rank of {max(wanted.values())}, and from a start the adapter keeps its rank, "
            f"{min(own.values())}; leave out the start (--start), or ask for no more"
        )
    if not sources.alike and not (sources.start is None and goes_by_products(strategy, form.space)):
        check_alike(sources, _way_out(sources))
    if sources.alike and (sources.start is not None or wanted.items() <= own.items()):
        return form, form
    highest = {name: max(ranks) for name, ranks in _ranks(sources).items()}
    if sources.alike:
        highest = {name: highest[name] for name in wanted}
    wide = form.with_ranks({name: max(wanted.get(name, 0), most) for name, most in highest.items()})
    return wide, form.with_ranks({**highest, **wanted})


def _ranks(sources: Sources) -> Mapping[str, list[int]]:
    """The ranks that each layer's product has in the adapters.

    Raises:
        SpaceError: adapters differ in more than rank and alpha.
    """
    first, *others = [of_products(row.space, row.folder) for row in sources.rows]
    for row, space in zip(sources.rows[1:], others, strict=True):
        try:
            first.check(space)
        except SpaceError as error:
            raise SpaceError(f"{row.folder} does not fit {sources.rows[0].folder}: {error}") from None
    found: dict[str, list[int]] = {}
    for row in sources.rows:
        for module in modules(row.space):
            found.setdefault(module.name, []).append(module.rank)
    return found


def _way_out(sources: Sources) -> str:
    try:
        _ranks(sources)
    except SpaceError:
        return ""
    return (
        "; adapters of other ranks or alphas are merged by their products: with FlexLoRA(rank=8), or exactly, in as "
        "many ranks as they have together (--exact)"
    )


def _factors(adapter: Adapter, module: Module) -> Factors:
    """A layer's factors with the adapter's own scaling, of which PEFT's config knows the patterns' order."""
    pair = module.factors(adapter.space, adapter.vector)
    return replace(pair, scaling=scaling(adapter.config, module.name, pair.rank))
