"""Isotropic merging: all singular values of a merged product made equal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.space import Space
from fedpeft.strategies.base import Context, Update
from fedpeft.strategies.cohort import write
from fedpeft.strategies.factors import Factors, Spectrum, spectrum_of_sum
from fedpeft.strategies.lora import modules, products_of
from fedpeft.strategies.of_products import check_products
from fedpeft.strategies.wrapping import After


@dataclass(frozen=True)
class IsoC(After):
    """Another strategy, then Iso-C: U diag(s) V becomes mean(s) U V for every layer's LoRA product.

    Marczak, Magistri, Cygert, Twardowski, Bagdanov and van de Weijer, 2025, arXiv 2502.04959. The
    authors' code gives mean(s) to all min(out, in) directions; those that the product does not have are arbitrary, so
    here it is the numerical rank's directions that are made equal, and the mean is over them. Only LoRA products are
    changed: heads and all other slots stay as the inner strategy left them, two-dimensional or not. As with the
    authors, what is made equal is the change from the base model, of all rounds together, so this is for the merge at
    the end: in every round of a run it would undo what training has said about sizes.

    The result depends on the product alone, but is nothing like linear: one client's own delta does not come back.
    """

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        """True: it works on adapters."""
        return True

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """True: it gives every product new factors."""
        return True

    def check_space(self, space: Space) -> None:
        """Pass where there are products, and the strategy inside can merge."""
        super().check_space(space)
        check_products(self, space)

    def settled(self, space: Space) -> frozenset[str]:
        """Both factors of each product, and what the strategy inside settles."""
        return products_of(space) | self.strategy.settled(space)

    def after(self, merged: Float[Tensor, " d"], ctx: Context) -> Float[Tensor, " d"]:
        """The delta to the adapter with equal singular values."""
        delta, adapter = merged.clone(), ctx.adapter(Update(merged))
        for module in modules(ctx.space):
            found = spectrum_of_sum([module.factors(ctx.space, adapter)], [1.0])
            near = None if ctx.start is None else module.factors(ctx.space, ctx.start)
            write(module, _isotropic(found).balanced(module.rank, near=near), delta, ctx)
        return delta


def iso_cts(terms: Sequence[Factors], rank: int, common: float = 0.8, scaling: float = 1.0) -> Factors:
    """Iso-CTS of one layer: the top directions of the sum, then each client's own top ones outside them, made equal.

    Marczak et al., 2025, arXiv 2502.04959. The authors share out all min(out, in)
    directions; here `rank` of them, of which each client gets round(rank (1 - common) / n) and the rest is common. All
    have one singular value, the mean of those found. It needs the list of clients and a rank of at least
    n / (1 - common) or so to leave each a direction, so it is for a merge at the end and no strategy of a run. With
    no direction for anybody it is Iso-C of the sum's best approximation.

    As with the authors, a client's own directions are those outside the common part, whatever the others' are. Where
    it has fewer than its share there, or clients have the same, the authors' decompositions fill up with arbitrary
    ones; here only directions that are there are made orthonormal and equal, and the result has so many fewer.

    Args:
        terms: the clients' factors, each with its own scaling.
        rank: of the result, at least 1; or less, where there are not so many directions.
        common: the common fraction of the directions, in (0, 1].
        scaling: that the result will be used with, more than 0.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if not 0 < common <= 1:
        raise ValueError(f"common must lie in (0, 1], got {common}")
    if not terms:
        raise ValueError("there is nothing to merge: no client contributed")
    whole = spectrum_of_sum(terms, [1.0] * len(terms))
    rank = min(rank, whole.rank)
    own = round(rank * (1 - common) / len(terms))
    kept = [whole.cut(rank - own * len(terms))]
    for term in terms if own else ():
        outside = replace(term, b=term.b - kept[0].u @ (kept[0].u.T @ term.b))
        found = spectrum_of_sum([outside], [1.0])
        kept.append(found.cut(min(own, found.rank_beside(float(whole.s[0])))))
    u, v = _nearest(torch.cat([one.u for one in kept], 1)), _nearest(torch.cat([one.v for one in kept]))
    together = _isotropic(spectrum_of_sum([Factors(u * torch.cat([one.s for one in kept]), v)], [1.0]))
    return together.balanced(together.rank, scaling)


def _isotropic(found: Spectrum) -> Spectrum:
    """Every singular value of the numerical rank replaced by their mean."""
    kept = found.cut(found.rank)
    return replace(kept, s=kept.s.mean().expand(len(kept.s))) if found.rank else kept


def _nearest(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The nearest matrix of orthonormal rows or columns, on the directions that they span."""
    found = Spectrum(*torch.linalg.svd(matrix, full_matrices=False))
    kept = found.cut(found.rank)
    return kept.u @ kept.v
