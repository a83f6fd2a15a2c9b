"""Random rows of a randomised Hadamard transform: a seeded projection at the cost of additions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.projection import Projection
from fedpeft.kernels import device
from fedpeft.random import Stream


@dataclass(frozen=True)
class SRHT(Projection):
    """Send K coordinates of the rotated delta: y = R H D x / sqrt(n), x^ = s D H R^T y / sqrt(n).

    The subsampled randomised Hadamard transform (Ailon and Chazelle, 2006; Tropp, 2011, arXiv 1011.1595). D are random
    signs, H is the Hadamard matrix of +1 and -1, R takes K of n rows, one at random in each of K strata of equal size.
    With s = 1 ("mean") x^ is the nearest vector in the span of the rows, ||x - x^||^2 = (1 - K/n) ||x||^2 on average;
    with s = n/K ("unbiased") it is (n/K - 1) ||x||^2 and E x^ = x. Signs and rows are the same for all clients: in
    float32 their y may be summed while encoded. However they are rounded, a server that merges by a mean takes that of
    the y, and transforms back once for all sites.

    A space is transformed in blocks of powers of two that stay in the processor's cache, of which the last ones shrink
    until they end with it, so nothing is padded; strata run through all blocks, so each gets its share of K by size.
    On average over signs no entry leaks into another, whichever rows are taken; rows at random spread what one draw
    leaks over the whole block. Fastfood (Le, Sarlos and Smola, 2013, arXiv 1408.3060), of which the intrinsic
    dimension is measured (Aghajanyan, Zettlemoyer and Gupta, 2020, arXiv 2012.13255), puts normal numbers, a
    permutation and a second H around this one: its rows look normal, are no longer orthogonal, and so lose more of a
    delta at twice the cost. Theirs is a fixed subspace to train in, here `directions="run"`.

    >>> import torch
    >>> from fedpeft.codecs.base import Context
    >>> from fedpeft.space import Slot, Space
    >>> space, x = Space((Slot("a", (4,), "head"),)), torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> codec = SRHT(density=1.0)
    >>> codec.decode(codec.encode(x, space, Context()), space, Context())
    tensor([1., 2., 3., 4.])

    Args:
        block: coordinates that are transformed together, a power of two.
    """

    block: int = 1 << 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.block) is not int or self.block < 1 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two, got {self.block!r}")

    def _measure(self, delta: Float[Tensor, " d"], k: int, stream: Stream) -> NDArray[np.floating]:
        """The products; on a GPU where the delta lies there, to the same bits."""
        if not device.holds(delta):
            return super()._measure(delta, k, stream)
        x = device.finite(delta)
        edges, exponents = self._blocks(x.numel())
        rows = device.stratified(device.stream_words(stream, 2 * k, 0, x.device), x.numel())
        signs = device.stream_words(stream, -(-x.numel() // 32), 2 * k, x.device)
        return device.to_host(device.sample_hadamard(x, edges, signs, rows, _power(-(exponents // 2))))

    def _project(self, x: NDArray[np.float32], k: int, stream: Stream) -> NDArray[np.floating]:
        edges, exponents = self._blocks(x.size)
        return kernels.sample_hadamard(x, edges, *_signs_and_rows(x.size, k, stream), _power(-(exponents // 2)))

    def _combine(self, y: NDArray[np.float32], d: int, stream: Stream) -> NDArray[np.float32]:
        edges, exponents = self._blocks(d)
        if self.scale == "unbiased" and y.size:
            y = y * _widths(y.size, d).astype(np.float32)
        factors = _power(exponents // 2 - exponents)
        return kernels.spread_hadamard(y, edges, *_signs_and_rows(d, y.size, stream), factors)

    def _longest(self, y: NDArray[np.float64], d: int) -> float:
        """Rows of H / sqrt(n) are orthonormal."""
        return float(np.linalg.norm(y * _widths(y.size, d) if self.scale == "unbiased" and y.size else y))

    def _blocks(self, d: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges of the blocks, and the logarithms of their sizes."""
        edges = kernels.halving_edges(d, self.block)
        return edges, np.log2(np.diff(edges)).astype(np.int64)


def _signs_and_rows(d: int, k: int, stream: Stream) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The bits of D, and which rows R takes, in order."""
    return stream.words(-(-d // 32), start=2 * k), kernels.stratified(stream.words(2 * k), d)


def _widths(k: int, d: int) -> NDArray[np.int64]:
    """Of the strata: n / K, in whole numbers."""
    return np.diff(np.arange(k + 1) * d // k)


def _power(exponents: NDArray[np.int64]) -> NDArray[np.float32]:
    """Powers of two, by which floats are multiplied without rounding: on both ways together, 1 / n."""
    return np.ldexp(np.float32(1), exponents).astype(np.float32)
