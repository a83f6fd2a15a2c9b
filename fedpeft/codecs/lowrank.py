"""The largest singular vectors of each slot's delta."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import LARGEST, Codec, Context, Field, Layout, Numbers, Part, Parts, Symbols, finite, take
from fedpeft.codecs.singular import Factors, leading
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space

_MOST_RANK = 255
_DTYPES = {"values": "float32", "left": "float16", "right": "float16", "whole": "float32"}


class _Matrix(NamedTuple):
    """A slot as a matrix of m rows and n columns, of which at most `most` ranks are sent; 0: it goes as it is."""

    begin: int
    m: int
    n: int
    most: int


@dataclass(frozen=True)
class LowRank(Codec):
    """Send the first r singular vectors of every matrix of the delta: M^ = sum_(i <= r) s_i u_i v_i^T.

    By Eckart and Young (1936) no matrix of rank r is nearer to M: ||M - M^||^2 = sum_(i > r) s_i^2. PowerSGD (Vogels,
    Karimireddy and Jaggi, 2019, arXiv 1905.13727) finds nearly these by one step of a power iteration a round, which
    starts from the last round's vectors; it needs that memory, and error feedback: `ErrorFeedback(LowRank(rank=1))`.
    Here they are found anew: a slot of LoRA has a short side, whose Gram matrix M M^T has them all; above a short side
    of 256, two iterations with a few vectors more than r (Halko, Martinsson and Tropp, 2011, arXiv 0909.4061, algorithm
    4.4) start from a stream's normal numbers.

    Vectors go as float16, in units of their root mean square, singular values as float32. A slot of one dimension, or
    which would not be shorter for it, goes as it is, in float32; of more than two, the first is held against the rest.

    >>> from fedpeft.space import Slot
    >>> space, x = Space((Slot("a", (3, 40), "lora_A"),)), torch.outer(torch.ones(3), torch.arange(40.0)).reshape(-1)
    >>> parts = LowRank(rank=1).encode(x, space, Context())
    >>> float((LowRank(rank=1).decode(parts, space, Context()) - x).norm() / x.norm()) < 1e-3
    True

    Args:
        rank: r of each slot, from 1 to 255; the most, where `energy` decides.
        energy: the share of ||M||^2, in (0, 1], that the fewest vectors of each slot must reach.
    """

    rank: int = 4
    energy: float | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= _MOST_RANK:
            raise ValueError(f"rank must be an integer from 1 to {_MOST_RANK}, got {self.rank!r}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {self.energy}")

    def layout(self, space: Space) -> Layout:
        """Singular values and vectors of all slots one after the other; ranks, where they depend on the delta."""
        matrices, ragged = _matrices(space, self.rank), self.energy is not None
        sizes = _sizes(matrices, [matrix.most for matrix in matrices])
        fields = {
            name: Field("numbers", sum(sizes[name]), ragged and name != "whole", dtype=_DTYPES[name]) for name in sizes
        }
        if ragged:
            fields["rank"] = Field("symbols", sum(matrix.most > 0 for matrix in matrices), levels=self.rank + 1)
        return fields

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Factor slot by slot."""
        x = finite(delta)
        pieces: dict[str, list[NDArray[Any]]] = {name: [np.empty(0, dtype)] for name, dtype in _DTYPES.items()}
        ranks = []
        for begin, m, n, most in _matrices(space, self.rank):
            numbers = x[begin : begin + m * n]
            if not most:
                pieces["whole"].append(numbers)
                continue
            factors = leading(numbers.reshape(m, n), most, self.energy, ctx.shared)
            ranks.append(factors.values.size)
            for name, factor in factors._asdict().items():
                pieces[name].append(factor.reshape(-1))
        parts: dict[str, Part] = {name: Numbers(np.concatenate(piece)) for name, piece in pieces.items()}
        if self.energy is not None:
            parts["rank"] = Symbols(np.array(ranks, np.uint8), self.rank + 1)
        return parts

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """Multiply out.

        Raises:
            PayloadError: there are more or fewer numbers than the ranks say, or a product may be beyond float32.
        """
        matrices = _matrices(space, self.rank)
        ranks = self._ranks(parts, matrices)
        numbers = {name: take(parts, name, Numbers).values for name in _DTYPES}
        edges = {name: np.cumsum([0, *sizes]) for name, sizes in _sizes(matrices, ranks).items()}
        for name, edge in edges.items():
            if numbers[name].size != edge[-1]:
                raise PayloadError(
                    Defect.COUNT, f"part {name!r}: the ranks need {edge[-1]} numbers, but {numbers[name].size} came"
                )
        out = np.zeros(space.numel, np.float32)
        for i, (begin, m, n, most) in enumerate(matrices):
            own = {name: numbers[name][edges[name][i] : edges[name][i + 1]] for name in numbers}
            if most:
                factors = Factors(own["values"], own["left"].reshape(m, -1), own["right"].reshape(-1, n))
                _multiply(factors, out[begin : begin + m * n])
            else:
                out[begin : begin + m * n] = own["whole"]
        return torch.from_numpy(out)

    def _ranks(self, parts: Parts, matrices: list[_Matrix]) -> list[int]:
        most = [matrix.most for matrix in matrices]
        if self.energy is None:
            return most
        came = iter(take(parts, "rank", Symbols).values.tolist())
        ranks = [next(came) if limit else 0 for limit in most]
        for i, (rank, limit) in enumerate(zip(ranks, most, strict=True)):
            if rank > limit:
                raise PayloadError(Defect.COUNT, f"slot {i} can have a rank of at most {limit}, got {rank}")
        return ranks


def _matrices(space: Space, rank: int) -> list[_Matrix]:
    matrices = []
    for slot, begin in zip(space.slots, space.bounds, strict=False):
        m = slot.shape[0] if len(slot.shape) > 1 else 1
        n = slot.numel // max(1, m)
        r = min(rank, m, n)
        shorter = min(m, n) > 1 and r * (4 + 2 * m + 2 * n) < 4 * m * n
        matrices.append(_Matrix(begin, m, n, r if shorter else 0))
    return matrices


def _sizes(matrices: list[_Matrix], ranks: list[int]) -> dict[str, list[int]]:
    """How many numbers of each part are each slot's."""
    both = list(zip(matrices, ranks, strict=True))
    return {
        "values": ranks,
        "left": [r * matrix.m for matrix, r in both],
        "right": [r * matrix.n for matrix, r in both],
        "whole": [0 if matrix.most else matrix.m * matrix.n for matrix in matrices],
    }


def _multiply(factors: Factors, out: NDArray[np.float32]) -> None:
    """Write the product of hostile factors."""
    values, left, right = (factor.astype(np.float64) for factor in factors)
    # At least 1, since values times the left alone must be finite too.
    ends = np.abs(left).max(0, initial=0) * np.abs(right).max(1, initial=1)
    if not np.abs(values) @ ends <= LARGEST:
        raise PayloadError(Defect.NON_FINITE, "a product of singular values and vectors may be infinite")
    kernels.add_outer((values * left).astype(np.float32), factors.right.astype(np.float32), out)
