"""Which rank-1 components of a LoRA adapter are worth their place: clients vote, and the others are switched off."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Context, Update
from fedpeft.strategies.lora import Module, modules
from fedpeft.strategies.of_products import check_products
from fedpeft.strategies.voted import Voted


@dataclass(frozen=True)
class RankAllocation(Voted):
    """The strategy inside, then only the rank-1 components that most clients approve of, over all modules together.

    The product of a module's factors is a sum of components B[:, j] A[j, :]. A client approves of as many of its own
    components as may stay, those of the largest norm ||B[:, j]|| ||A[j, :]||, times the module's scaling, after its
    training; the sum of the votes elects, and a tie goes to the earlier component. So modules that matter to many
    clients get a higher rank. A client has one vote whatever its weight: AdaLoRA (Zhang et al., 2023, arXiv 2303.10512)
    shares out ranks by importance too, but by one model's gradients. Of a component that lost, the column of B becomes
    zero and the row of A stays: it adds nothing to the adapter, and can be voted for again once a client trained it.
    For a zero to be one, the server's optimizer is `SGD(lr=1.0)`.

    Norms depend on how a product is split into components (training does not fix it), and a vote is as honest as who
    casts it: clients that agree can keep components alive, though not what these hold.

    Args:
        strategy: merges the updates.
        keep: share of all components that stays, in (0, 1].
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}")

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        """Votes are on the clients' adapters, so all must have begun at one; not where nothing can be lost."""
        return self.keep < 1 or self.strategy.anchored

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """Whether something can be lost, which is then zero, and whether the strategy inside does."""
        return self.keep < 1 or self.strategy.settles

    def check_space(self, space: Space) -> None:
        """Pass where there are products, and the strategy inside can merge."""
        super().check_space(space)
        check_products(self, space)

    def settled(self, space: Space) -> frozenset[str]:
        """Each B of which components can be lost, and what the strategy inside settles."""
        lost = frozenset(module.b for module in modules(space)) if self.keep < 1 else frozenset()
        return lost | self.strategy.settled(space)

    def votes(self, update: Update, ctx: Context) -> Float[Tensor, " c"]:
        """One for each component of as many as may stay."""
        return _votes(update, ctx, self._budget(ctx.space))

    def _budget(self, space: Space) -> int:
        return max(1, round(self.keep * _components(space)))

    def after(self, merged: Float[Tensor, " d"], votes: Float[Tensor, " c"], ctx: Context) -> Float[Tensor, " d"]:
        """The delta that makes zeros of the columns of B that lost."""
        kept = _elected(votes, ctx.space, self._budget(ctx.space))
        out = merged.clone()
        for module in _modules(ctx.space):
            lost = [j for j in range(module.rank) if j not in kept[module.name]]
            start = 0.0 if ctx.start is None else ctx.space.view(ctx.start, module.b)[:, lost]
            ctx.space.view(out, module.b)[:, lost] = -start
        return out


def rank_votes(updates: Iterable[Update], ctx: Context, budget: int) -> Mapping[str, tuple[int, ...]]:
    """Which components of each LoRA module the clients elect; a module may be left with none.

    Args:
        updates: one vote each for the `budget` components of the largest norm in the client's adapter.
        ctx: what the updates are merged into.
        budget: how many components stay, over all modules.

    Raises:
        ValueError: the adapter has no LoRA module, or the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
    total = torch.zeros(_components(ctx.space), dtype=torch.float64)
    for update in updates:
        total += _votes(update, ctx, budget)
    return _elected(total, ctx.space, budget)


def _votes(update: Update, ctx: Context, budget: int) -> Float[Tensor, " c"]:
    """One for each component that the client approves of, else zero."""
    adapter, norms = ctx.adapter(update), []
    for module in _modules(ctx.space):
        pair = module.factors(ctx.space, adapter)
        norms.append(module.scaling * pair.b.norm(dim=0) * pair.a.norm(dim=1))
    return _best(torch.cat(norms), budget).double()


def _best(values: Float[Tensor, " c"], count: int) -> Tensor:
    """A mask of the largest; of equal ones the first."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[torch.argsort(values, descending=True, stable=True)[:count]] = True
    return mask


def _elected(votes: Float[Tensor, " c"], space: Space, budget: int) -> dict[str, tuple[int, ...]]:
    found = _modules(space)
    won = torch.split(_best(votes, budget), [module.rank for module in found])
    return {module.name: tuple(mask.nonzero().flatten().tolist()) for module, mask in zip(found, won, strict=True)}


def _modules(space: Space) -> tuple[Module, ...]:
    if not (found := modules(space)):
        names = [slot.name for slot in space.slots]
        raise ValueError(f"votes on components need a LoRA module; the adapter has the slots {names[:3]}, ...")
    return found


def _components(space: Space) -> int:
    return sum(module.rank for module in _modules(space))
