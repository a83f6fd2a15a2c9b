"""The cosine transform of small blocks, before whatever codec."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import Context, Transform, finite
from fedpeft.codecs.matrices import sides
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Slot, Space


@dataclass(frozen=True)
class DCT(Transform):
    """Encode cosine coefficients instead of coordinates: X = C_h x C_w^T of every block of h rows and w columns.

    DeMo (Peng, Quesnelle and Kingma, 2024, arXiv 2411.19870, section 3), whose top 32 of a block of 64 x 64 is
    `chain(DCT(), TopK(density=0.0078125))`, here with its values rounded. C is the orthonormal DCT-II (Ahmed, Natarajan
    and Rao, 1974): C_ki = sqrt(2 / n) cos(pi (2 i + 1) k / 2n), and sqrt(1 / n) for k = 0. Sums are of one fixed order
    that no matrix library decides, so that all sites decode the same bits. DeMo cuts a side into equal parts of at
    most 64; here the blocks at the edges are smaller. Dimensions after the first are one; a slot of one dimension is
    cut into chunks.

    Coefficients lie block after block, so that a whole block is one chunk of `TopK`.

    >>> from fedpeft.space import Slot
    >>> DCT().forward(torch.ones(4), Space((Slot("a", (4,), "head"),)), Context())
    tensor([2., 0., 0., 0.])

    Args:
        chunk: side of a block, 2 to 256.
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or not 2 <= self.chunk <= 256:
            raise ValueError(f"chunk must be an integer from 2 to 256, got {self.chunk!r}")

    def forward(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The coefficients."""
        x = finite(delta)
        out = np.empty_like(x)
        for slot, part in _parts(space):
            self._transform(x[part], slot, out[part], back=False)
        return torch.from_numpy(out)

    def inverse(self, vector: Float[Tensor, " d"], space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """The delta that has these coefficients, in their place.

        Raises:
            PayloadError: it is beyond float32, as no delta's own coefficients are.
        """
        x = vector.numpy()
        for slot, part in _parts(space):
            self._transform(x[part].copy(), slot, x[part], back=True)
        if not kernels.all_finite(x):
            raise PayloadError(Defect.NON_FINITE, "the inverse cosine transform of what came is not finite")
        return vector

    def _transform(self, x: NDArray[np.float32], slot: Slot, out: NDArray[np.float32], *, back: bool) -> None:
        for columns, h, w, starts, blocks in _grids(*sides(slot), self.chunk):
            kernels.cosine_blocks(x, starts, blocks, columns, _table(h), _table(w), out, back=back)


def _parts(space: Space) -> Iterator[tuple[Slot, slice]]:
    for slot, (begin, end) in zip(space.slots, pairwise(space.bounds), strict=True):
        yield slot, slice(begin, end)


@lru_cache(maxsize=64)
def _grids(
    rows: int, columns: int, chunk: int
) -> tuple[tuple[int, int, int, NDArray[np.int64], NDArray[np.int64]], ...]:
    """Columns of the matrix, and of blocks of one size their rows, columns, and places in the matrix and out of it."""
    grids = []
    for top, h, down in _cut(rows, chunk):
        for left, w, across in _cut(columns, chunk):
            i, j = np.divmod(np.arange(down * across), across)
            starts = (top + i * h) * columns + left + j * w
            grids.append((columns, h, w, starts, (top + i * h) * columns + h * (left + j * w)))
    return tuple(grids)


def _cut(n: int, chunk: int) -> list[tuple[int, int, int]]:
    """Where the whole parts of a side begin, their size and number, and the same of the rest."""
    whole, rest = divmod(n, chunk)
    parts = [(0, chunk, whole), (n - rest, rest, 1 if rest else 0)]
    return [part for part in parts if part[2]]


@lru_cache(maxsize=256)
def _table(n: int) -> NDArray[np.float32]:
    """C, row after row, from the cosines of one period."""
    angle = np.outer(np.arange(n), 2 * np.arange(n) + 1) % (4 * n)
    c = np.sqrt(2 / n) * np.cos(np.pi * np.arange(4 * n) / (2 * n))[angle]
    c[0] = np.sqrt(1 / n)
    table: NDArray[np.float32] = c.astype(np.float32).reshape(-1)
    return table
