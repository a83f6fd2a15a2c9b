"""FlexLoRA: the best low-rank approximation of the mean product."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedpeft.strategies.cohort import ByProduct, Cohort, layers
from fedpeft.strategies.factors import Factors, shares_of, spectrum_of_sum
from fedpeft.strategies.lora import Module


@dataclass(frozen=True)
class FlexLoRA(ByProduct):
    """The mean of the products B_i A_i, cut to the adapter's rank by its singular values.

    Bai, Chen, Qian, Yao and Li, 2024, arXiv 2402.11505: W = sum_i n_i B_i A_i / sum_i n_i, then SVD. By Eckart and
    Young no other adapter of that rank is nearer to the mean. The authors write out every out x in matrix; here QR of
    the stacked factors leaves a core of n r x n r. B and A come out equal in size and turned towards the start
    (`Spectrum.balanced`). `SubspaceStep` is nearly as good, and a sum.

    Args:
        rank: cut to fewer directions than the adapter has, at least 1; None: to as many as it has.
        ordered: by falling singular value and not turned towards the start, for sites that train the first components
            alone: the authors cut the mean to each client's rank, and these are the same directions.
    """

    rank: int | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, or None for the adapter's, got {self.rank}")

    def products(self, cohort: Cohort) -> Iterator[tuple[Module, Factors]]:
        """The cut mean of every layer."""
        for module in layers(cohort):
            mean = spectrum_of_sum(cohort.factors(module), cohort.shares)
            kept = min(self.rank or module.rank, module.rank)
            yield module, mean.cut(kept).balanced(module.rank, near=cohort.start(module), ordered=self.ordered)


def best_mean(terms: Sequence[Factors], weights: Sequence[float], rank: int, scaling: float = 1.0) -> Factors:
    """FlexLoRA of one layer whose clients may differ in rank and in scaling: the best approximation of their mean.

    >>> import torch
    >>> one = Factors(torch.tensor([[2.0], [0.0]]).double(), torch.tensor([[1.0, 0.0]]).double(), scaling=3.0)
    >>> merged = best_mean([one, one], [1.0, 5.0], rank=1)
    >>> [[round(x, 9) for x in row] for row in (merged.b @ merged.a).tolist()]
    [[6.0, 0.0], [0.0, 0.0]]

    Args:
        terms: the clients' factors, each with its own scaling (alpha / r).
        weights: more than 0, usually numbers of examples.
        rank: of the result, at least 1.
        scaling: that the result will be used with, more than 0.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    return spectrum_of_sum(terms, shares_of(weights)).balanced(rank, scaling)
