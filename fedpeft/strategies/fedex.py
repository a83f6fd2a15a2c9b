"""FedEx-LoRA: the mean factors, and what they miss of the mean product as additional rank."""

from collections.abc import Sequence

import torch

from fedpeft.strategies.factors import Factors, shares_of, spectrum_of_sum


def with_residual(terms: Sequence[Factors], weights: Sequence[float], rank: int) -> Factors:
    """The mean B and the mean A of one layer's clients, and beside them the best `rank` directions of what is missing.

    Singhal, Ponkshe and Vepakomma, 2024, arXiv 2410.09432: the residual is
    sum_i p_i B_i A_i - B A, which equals sum_i p_i (B_i - B)(A_i - A) and has rank (n - 1) r at most, so with that
    rank the result is exact. The authors add all of it to the base model's weight; here the base stays as it is, and
    the residual is `rank` further columns of b and rows of a. That changes the adapter's shape: it is for a merge at
    the end, and no strategy of a run, whose space is fixed.

    Args:
        terms: the clients' factors, of one rank r and one scaling, which the result of rank r + `rank` keeps.
        weights: more than 0, usually numbers of examples.
        rank: of the residual, at least 0.

    Raises:
        ValueError: clients differ in rank or scaling, rank is negative, there is no client, or a weight is not
            positive and finite.
    """
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    shares, kinds = shares_of(weights), sorted({(term.rank, term.scaling) for term in terms})
    if len(kinds) != 1:
        raise ValueError(
            f"the mean of factors needs one rank and one scaling, got (rank, scaling) {kinds}; "
            "clients that differ can be stacked, or merged by FlexLoRA's best mean"
        )
    (_, scaling), pairs = kinds[0], list(zip(terms, shares, strict=True))
    b = sum((term.b * share for term, share in pairs), torch.zeros_like(terms[0].b))
    a = sum((term.a * share for term, share in pairs), torch.zeros_like(terms[0].a))
    missing = spectrum_of_sum([Factors(term.b - b, term.a - a, scaling) for term in terms], shares)
    more = missing.balanced(rank, scaling)
    return Factors(torch.cat([b, more.b], 1), torch.cat([a, more.a]), scaling)
