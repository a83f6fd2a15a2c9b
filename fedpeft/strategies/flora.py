"""FLoRA: the factors of all clients stacked, which is their mean product without any loss."""

from collections.abc import Sequence

import torch

from fedpeft.strategies.factors import Factors, shares_of


def stacked(terms: Sequence[Factors], weights: Sequence[float], scaling: float = 1.0) -> Factors:
    """One layer's clients side by side: b = [B_1 ... B_n] and a = [p_1 A_1; ...; p_n A_n].

    Wang, Shen, He, Sun, Wang, Lyu and Li, 2024, arXiv 2409.05976: b a is exactly sum_i p_i B_i A_i, for
    clients of any rank; each client's alpha / r goes into its rows of a. The rank is sum_i r_i, so the result is an
    adapter of another shape: it is for a merge at the end, and no strategy of a run, whose space is fixed.
    `FlexLoRA` is what is left of it at the space's rank. The authors add the product to the base model and begin
    with fresh factors each round; in their code the baseline "FedIT" of equal ranks is one client's adapter, here it
    is `Mean`.

    Args:
        terms: the clients' factors, each with its own scaling.
        weights: more than 0, usually numbers of examples.
        scaling: that the result will be used with, more than 0.

    Raises:
        ValueError: there is no client, or a weight is not positive and finite.
    """
    shares = shares_of(weights)
    rows = [term.a * (share * term.scaling / scaling) for term, share in zip(terms, shares, strict=True)]
    return Factors(torch.cat([term.b for term in terms], 1), torch.cat(rows), scaling)
