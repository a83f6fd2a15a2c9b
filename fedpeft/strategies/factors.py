"""Products of thin matrices, never written out: their weighted sum's singular values, and factors of it again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Four spacings of float32, in which factors are kept: what lies below is rounding.
_NOTHING = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Factors:
    """The matrix scaling * b a.

    Args:
        b: shape (out, r), float64.
        a: shape (r, in), float64.
        scaling: what the product is multiplied with where it is used.
    """

    b: Float[Tensor, "out r"]
    a: Float[Tensor, "r in"]
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """The number r of columns of b."""
        return self.b.shape[1]

    def rescaled(self, scaling: float) -> "Factors":
        """The same matrix under another scaling, other than 0."""
        return Factors(self.b, self.a * (self.scaling / scaling), scaling)

    def dot(self, other: "Factors") -> float:
        """The inner product of the two matrices, from two r x r matrices."""
        gram = (self.b.T @ other.b) * (self.a @ other.a.T)
        return self.scaling * other.scaling * float(gram.sum())


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A thin singular value decomposition u diag(s) v.

    Args:
        u: shape (out, k), orthonormal columns.
        s: shape (k,), falling.
        v: shape (k, in), orthonormal rows.
    """

    u: Float[Tensor, "out k"]
    s: Float[Tensor, " k"]
    v: Float[Tensor, "k in"]

    @property
    def rank(self) -> int:
        """How many singular values are more than the rounding of float32."""
        return self.rank_beside(float(self.s.max())) if len(self.s) else 0

    def rank_beside(self, size: float) -> int:
        """How many singular values are more than the rounding of float32 in a matrix of this largest one."""
        return int((self.s > _NOTHING * size).sum())

    def cut(self, rank: int) -> "Spectrum":
        """The best approximation of at most this rank."""
        return Spectrum(self.u[:, :rank], self.s[:rank], self.v[:rank])

    def balanced(self, rank: int, scaling: float = 1.0, near: Factors | None = None, ordered: bool = False) -> Factors:
        """The best approximation of a rank, as factors of equal size: b^T b = a a^T.

        Without a neighbour the largest entry of each column of u is made positive. With one, the factors are turned
        (b R and R^T a, with the orthogonal R of the Procrustes problem) to lie as near to it as they can: the product
        is the same, but from round to round the factors move no more than it does. `ordered` ones are not turned: the
        k-th column of b and row of a have the k-th singular value, and the neighbour's sign. Where the matrix has less
        than this rank, what is left of a is taken from the neighbour, with zeros in b: a row of zeros in both would
        have no gradient and could never be trained again.

        Args:
            rank: columns of b, at least 0.
            scaling: of the factors, more than 0.
            near: factors of that rank.
            ordered: leave the largest components first.
        """
        k = min(rank, self.rank)
        root = (self.s[:k] / scaling).sqrt()
        u, v = self.u[:, :k], self.v[:k]
        top = u.gather(0, u.abs().argmax(0, keepdim=True)).sign() if k else u[:1]
        b, a = u * (top * root), v * (top.T * root[:, None])
        b = torch.cat([b, b.new_zeros(len(b), rank - k)], 1)
        a = torch.cat([a, _fresh(rank - k, v, near)], 0)
        if near is None:
            return Factors(b, a, scaling)
        shared = b.T @ near.b + a @ near.a.T
        if ordered:
            sign = torch.where(shared.diagonal() < 0, -1.0, 1.0).double()
            return Factors(b * sign, sign[:, None] * a, scaling)
        left, _, right = torch.linalg.svd(shared)
        turn = left @ right
        return Factors(b @ turn, turn.T @ a, scaling)


def spectrum_of_sum(terms: Sequence[Factors], shares: Sequence[float]) -> Spectrum:
    """The decomposition of sum_i shares_i scaling_i b_i a_i, without the out x in matrix.

    QR of the stacked factors on both sides, and an SVD of the small core between them: with R = sum r_i, memory and
    time are those of (out + in) x min(R, out, in) matrices.
    """
    b = torch.cat([term.b * (share * term.scaling) for term, share in zip(terms, shares, strict=True)], 1)
    (q, left), (p, right) = torch.linalg.qr(b), torch.linalg.qr(torch.cat([term.a for term in terms]).T)
    u, s, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    return Spectrum(q @ u, s, v @ p.T)


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights over their sum.

    Raises:
        ValueError: there is none, or one is not positive and finite.
    """
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights must be positive and finite, and at least one, got {list(weights)}")
    largest = max(weights)
    total = sum(weight / largest for weight in weights)
    return [weight / largest / total for weight in weights]


def _fresh(rows: int, v: Float[Tensor, "k in"], near: Factors | None) -> Float[Tensor, "rows in"]:
    """Rows orthogonal to those of v, from the neighbour's a where it has some."""
    fresh = v.new_zeros(rows, v.shape[1])
    if rows and near is not None:
        _, s, w = torch.linalg.svd(near.a - near.a @ v.T @ v, full_matrices=False)
        fresh[: len(s)] = (s[:, None] * w)[:rows]
    return fresh
