"""KnOTS: the products of all clients in one basis of singular vectors, and TIES there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.strategies.cohort import ByProduct, Cohort, layers
from fedpeft.strategies.factors import Factors, Spectrum, spectrum_of_sum
from fedpeft.strategies.lora import Module
from fedpeft.strategies.votes import TIE


@dataclass(frozen=True)
class KnOTS(ByProduct):
    """KnOTS-TIES: [D_1 ... D_n] = U S [V_1 ... V_n], TIES on the matrices S V_i, and U times what it gives.

    Stoica, Ramesh, Ecsedi, Choshen and Hoffman, 2024, arXiv 2410.19735. D_i is what client i's training
    changed of the product, B_i A_i minus the start's, so that a run's trim does not fall on earlier rounds; whole
    adapters (no start) are merged as the authors do. As they do, trimming is by magnitude over all layers of a client,
    election by the sum of values, and the mean is over those who agree. What differs: weights count, in the basis,
    the election and the mean alike (equal ones are the authors' rule); a tied election yields 0 instead of the
    majority's sign; directions below float32's rounding are dropped relative to the largest, not below 1e-5; the
    authors' factor of the task vector, .6 in their configs, is the server's step size; and the result is cut to the
    adapter's rank, where they add all of it to the base model.

    Memory: S V_i of all clients and layers in float64, min(out, (n + 1) r) x in numbers for each. The basis comes
    from QR of the stacked factors and an SVD of their core; only S V_i is written out.

    Args:
        density: the fraction of each client's coordinates that is kept, in (0, 1].
        trim: "global" over all layers of a client, or in each "layer".
    """

    density: float = 0.2
    trim: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if self.trim not in ("global", "layer"):
            raise ValueError(f"trim must be 'global' or 'layer', got {self.trim!r}")

    def products(self, cohort: Cohort) -> Iterator[tuple[Module, Factors]]:
        """Bases and coordinates of all layers, then every layer's election."""
        known = [(m, *_in_one_basis(_changes(cohort, m), cohort.shares)) for m in layers(cohort)]
        clients = range(len(cohort.shares))
        overall = [_floor([c[i] * m.scaling for m, _, c in known], self.density) for i in clients] if known else []
        for module, u, coordinates in known:
            if self.trim == "global":
                floors = [floor / abs(module.scaling) for floor in overall]
            else:
                floors = [_floor([c], self.density) for c in coordinates]
            terms = [Factors(u, _elected(coordinates, floors, cohort.shares))]
            start = cohort.start(module)
            if start is not None:
                terms.append(start)
            yield module, spectrum_of_sum(terms, [1.0] * len(terms)).balanced(module.rank, near=start)


def _changes(cohort: Cohort, module: Module) -> list[Factors]:
    """Factors of every client's product minus the start's."""
    found, start = cohort.factors(module), cohort.start(module)
    if start is None:
        return found
    return [Factors(torch.cat([one.b, -start.b], 1), torch.cat([one.a, start.a])) for one in found]


def _in_one_basis(
    terms: Sequence[Factors], shares: Sequence[float]
) -> tuple[Float[Tensor, "out k"], list[Float[Tensor, "k in"]]]:
    """U of [sqrt(p_1) D_1 ... sqrt(p_n) D_n], on its numerical rank, and every client's U^T D_i."""
    q, right = torch.linalg.qr(torch.cat([term.b for term in terms], 1))
    cores = right.split([term.rank for term in terms], 1)
    lengths = [torch.linalg.qr(term.a.T)[1].T for term in terms]
    blocks = [core @ a * math.sqrt(share) for core, a, share in zip(cores, lengths, shares, strict=True)]
    found = Spectrum(*torch.linalg.svd(torch.cat(blocks, 1), full_matrices=False))
    u = found.u[:, : found.rank]
    return q @ u, [(u.T @ core) @ term.a for core, term in zip(cores, terms, strict=True)]


def _floor(tensors: Sequence[Tensor], density: float) -> float:
    """The smallest of the magnitudes that are kept."""
    magnitudes = torch.cat([tensor.flatten() for tensor in tensors]).abs_()
    n = len(magnitudes)
    return float(magnitudes.kthvalue(n - math.ceil(density * n) + 1)[0]) if n else 0.0


def _elected(
    coordinates: Sequence[Float[Tensor, "k in"]], floors: Sequence[float], shares: Sequence[float]
) -> Float[Tensor, "k in"]:
    """The weighted mean over those whose sign is that of the sum."""
    trimmed = [torch.where(x.abs() >= floor * (1 - TIE), x, 0.0) for x, floor in zip(coordinates, floors, strict=True)]
    lead, largest = torch.zeros_like(trimmed[0]), 0.0
    for x, share in zip(trimmed, shares, strict=True):
        lead.add_(x, alpha=share)
        largest = max(largest, share * float(x.abs().max())) if x.numel() else 0.0
    lead[lead.abs() <= TIE * largest] = 0
    total, voters = torch.zeros_like(lead), torch.zeros_like(lead)
    for x, share in zip(trimmed, shares, strict=True):
        agrees = (x * lead.sign() > 0).double()
        total.add_(x * agrees, alpha=share)
        voters.add_(agrees, alpha=share)
    return total / voters.clamp(min=torch.finfo(torch.float64).tiny)
