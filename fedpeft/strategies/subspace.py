"""The subspace step: nearly the best low-rank mean of LoRA products, from sums alone, in two passes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.base import Additive, Broadcast, Context, Summands, Update
from fedpeft.strategies.cohort import write
from fedpeft.strategies.drawing import Part, stream_of
from fedpeft.strategies.factors import Spectrum
from fedpeft.strategies.lora import Module, modules, rest
from fedpeft.strategies.of_products import OfProducts

_WEIGHT = "weight of all"


@dataclass(frozen=True)
class SubspaceStep(OfProducts, Additive):
    """One step of subspace iteration on the mean product M = sum_i n_i B_i A_i / sum_i n_i.

    Halko, Martinsson and Tropp, 2011, arXiv 0909.4061, algorithm 4.1, with the rows of A at the start as its test
    matrix W: the first pass sums n_i B_i (A_i W), of which all are told an orthonormal basis Q; the second sums
    n_i (Q^T B_i) A_i. The result is Q Q^T M, of the adapter's rank. Each pass sums half an adapter; no client's
    factors are needed in the clear, and it does not matter in which basis a client has them. Where clients share a
    start the error is that of the best rank-r matrix to the third digit; FlexLoRA gives that matrix itself, but needs
    the list of updates. Distributed power iterations on LoRA are also found in FedPower (arXiv 2605.08443), FLoRIST
    (2506.09199) and FLoRG (2602.17095).

    The basis of W spans the same as A^+ does. Directions that A lacks, since its rows are dependent or there is no
    start, are drawn at random from the run's seed and round, as Halko et al. do for all; then expect more error.
    """

    @property
    def passes(self) -> int:
        """One for the columns, one for the rows."""
        return 2

    def lift(self, update: Update, ctx: Context) -> Summands:
        """Half of every product: its columns, then its rows, and with these all slots that are in no product."""
        space, weight, delta = ctx.space, update.weight, update.delta
        adapter = ctx.adapter(Update(delta, weight))
        pairs = [(module, module.factors(space, adapter)) for module in modules(space)]
        if not ctx.told:
            lifted = {m.b: f.b @ (f.a @ _test_matrix(m, i, ctx)) * weight for i, (m, f) in enumerate(pairs)}
        else:
            lifted = {m.a: (ctx.told[m.b].T @ f.b) @ f.a * weight for m, f in pairs}
            lifted |= {name: space.view(delta, name).double() * weight for name in rest(space)}
        return lifted | {_WEIGHT: torch.tensor(weight, dtype=torch.float64)}

    def finalize(self, total: Summands, ctx: Context) -> Float[Tensor, " d"] | Broadcast:
        """Bases after the first pass, the delta after the second."""
        space = ctx.space
        if not ctx.told:
            bases = {m.b: torch.linalg.qr(total[m.b])[0] for m in modules(space)}
            return Broadcast(bases | {_WEIGHT: total[_WEIGHT]})
        delta = torch.empty(space.numel)
        for name in rest(space):
            space.view(delta, name).copy_(total[name] / total[_WEIGHT])
        for module in modules(space):
            u, s, v = torch.linalg.svd(total[module.a] / total[_WEIGHT], full_matrices=False)
            near = None if ctx.start is None else module.factors(space, ctx.start)
            write(module, Spectrum(ctx.told[module.b] @ u, s, v).balanced(module.rank, near=near), delta, ctx)
        return delta


def _test_matrix(module: Module, index: int, ctx: Context) -> Float[Tensor, "in k"]:
    """Orthonormal columns: those that A at the start spans, then random ones; min(r, in) in all."""
    rows = module.factors(ctx.space, ctx.start).a
    known = Spectrum(*torch.linalg.svd(rows, full_matrices=False))
    width = min(rows.shape)
    if known.rank == width:
        return known.v.T
    drawn = torch.from_numpy(stream_of(ctx, Part.SUBSPACE, index).normal(rows.shape[1] * width))
    random = drawn.view(rows.shape[1], width)
    q: Tensor = torch.linalg.qr(torch.cat([known.v[: known.rank].T, random], 1))[0]
    return q[:, :width]
