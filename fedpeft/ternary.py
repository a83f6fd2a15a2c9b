"""A ternary delta as it travels between a codec and a strategy: two bit planes and a scale for each piece."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels


@dataclass(frozen=True, eq=False)
class TernaryDelta:
    """+s, -s or 0 for each coordinate, in a sixteenth of the memory of float32; s is of the piece it lies in.

    Args:
        mask: uint64[ceil(d / 64)]; bit i & 63 of word i >> 6 says that coordinate i is kept.
        negative: the same for minus signs; a bit is set only where the mask's is.
        bounds: int64[m + 1], rising from 0 to d: where pieces begin and end.
        scales: float32[m], finite; one for each piece.
    """

    mask: NDArray[np.uint64]
    negative: NDArray[np.uint64]
    bounds: NDArray[np.int64]
    scales: NDArray[np.float32]

    @staticmethod
    def of(
        mask: NDArray[np.uint8], signs: NDArray[np.uint8], bounds: NDArray[np.int64], scales: NDArray[np.float32]
    ) -> "TernaryDelta":
        """From a mask in bytes, and one sign for each coordinate that it keeps.

        Raises:
            PayloadError: there are more or fewer signs than the mask keeps, or bits are set past the end.
        """
        return TernaryDelta(*kernels.align_planes(mask, signs, int(bounds[-1])), bounds, scales)

    @property
    def numel(self) -> int:
        """Number of coordinates d."""
        return int(self.bounds[-1])

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.mask.nbytes + self.negative.nbytes + self.scales.nbytes

    def __mul__(self, factor: float) -> "TernaryDelta":
        """The delta times a number."""
        return replace(self, scales=self.scales * np.float32(factor))

    def dense(self) -> Float[Tensor, " d"]:
        """The delta in float32."""
        out = np.empty(self.numel, np.float32)
        kernels.write_planes(self.mask, self.negative, self.bounds, self.scales, out)
        return torch.from_numpy(out)
