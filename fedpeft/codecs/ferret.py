"""Products with independent directions of random signs, of a round or of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpeft import kernels
from fedpeft.codecs.projection import Projection
from fedpeft.random import Stream

_WORDS = 1 << 18  # drawn at once: a megabyte
_ALL_WORDS = 1 << 34  # of a stream


@dataclass(frozen=True)
class Ferret(Projection):
    """Send K products with random directions: y_i = <x, v_i> / sqrt(n), x^ = s sqrt(n) / K sum_i y_i v_i.

    Ferret (Shu, Hu, Ng, Low and Yu, 2024, arXiv 2409.06277): a first-order update as coordinates along directions
    redrawn from a seed, block by block. Here the entries of v are +1 and -1, straight from the bits of a
    stream, so that E[v v^T] = I. The released code draws them from U(-1/sqrt(n), 1/sqrt(n)), whose E[v v^T] is
    I / (3 n), and corrects by n alone: its mean is x / 3, and the server's learning rate has to hide that. It also
    splits K over blocks by their norms, which no sum over clients could have; here by size.

    With s = 1 ("unbiased") E x^ = x and E ||x - x^||^2 = (n - 1)/K ||x||^2, where normal numbers have (n + 1)/K; with
    s = K / (K + n - 1) ("mean"), the s that is nearest on average, it is (n - 1)/(K + n - 1) ||x||^2. n and K are those
    of a block, their quotient the space's. The directions are not orthogonal, so at every K `SRHT` loses less, for
    less: K n additions a block, K d^2 / n for all, make this a codec for research. A server that merges by a mean pays
    for them once, not for each site.

    FedKSeed (Qin, Chen, Qian, Ding, Li and Deng, 2023, arXiv 2312.06353) keeps one scalar for each of K seeds of the
    run and adds up what a client stepped along it: `directions="run"`, whose y add up over steps, clients and rounds. A
    trainer that steps along these directions may put its sums into the part itself. What lies across the K directions
    of a run never gets through, so error feedback would pile it up.

    Args:
        block: coordinates that share directions, at most; blocks are of one size and no more than there are directions.
    """

    block: int = 1 << 14

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.block) is not int or self.block < 1:
            raise ValueError(f"block must be an integer of at least 1, got {self.block!r}")

    def _project(self, x: NDArray[np.float32], k: int, stream: Stream) -> NDArray[np.floating]:
        y = np.empty(k, np.float64)
        for block, _, some, words in self._directions(x.size, k, stream):
            y[some] = kernels.signed_sums(x[block], words) / np.sqrt(block.stop - block.start)
        return y

    def _combine(self, y: NDArray[np.float32], d: int, stream: Stream) -> NDArray[np.float32]:
        out = np.zeros(d, np.float32)
        for block, count, some, words in self._directions(d, y.size, stream):
            n = block.stop - block.start
            factor = np.sqrt(n) / (count if self.scale == "unbiased" else count + n - 1)
            kernels.add_signed(y[some] * factor, words, out[block])
        return out

    def _longest(self, y: NDArray[np.float64], d: int) -> float:
        """No direction is longer than the root of its block, n; with "mean", factors times n are at most 1."""
        blocks = min(y.size, -(-d // self.block))
        grown = -(-d // blocks) / (y.size // blocks) if self.scale == "unbiased" and blocks else 1.0
        return float(grown * np.abs(y).sum())

    def _directions(self, d: int, k: int, stream: Stream) -> Iterator[tuple[slice, int, slice, NDArray[np.uint32]]]:
        """A block, how many directions it has, some of them, and their bits."""
        blocks = min(k, -(-d // self.block))
        edges = [b * d // blocks for b in range(blocks + 1)] if blocks else []
        used = 0
        for b, (begin, end) in enumerate(pairwise(edges)):
            first, last, width = b * k // blocks, (b + 1) * k // blocks, -(-(end - begin) // 32)
            step = max(1, _WORDS // width)
            for i in range(first, last, step):
                count = min(step, last - i)
                if used + count * width > _ALL_WORDS:
                    raise ValueError(
                        f"{self}: {k} directions of {end - begin} signs are too many; take a smaller block"
                    )
                yield slice(begin, end), last - first, slice(i, i + count), stream.words(count * width, used)
                used += count * width
