"""Ternary codes: a sparse delta as a mask, signs and one scale a slot."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fedpeft import kernels
from fedpeft.codecs.base import LARGEST, Codec, Context, Field, Layout, Numbers, Parts, Plane, finite, take
from fedpeft.codecs.matrices import grids
from fedpeft.codecs.scale import Scale, check_scale, scales
from fedpeft.errors import Defect, PayloadError
from fedpeft.kernels import device
from fedpeft.space import Space
from fedpeft.ternary import TernaryDelta


@dataclass(frozen=True)
class Ternary(Codec):
    """Keep the largest magnitudes and send only their signs and a scale.

    ComPEFT (Yadav, Choshen, Raffel and Bansal, 2023, arXiv 2311.13171, algorithm 1): t = sign(x) where |x| is
    among the density's largest, x^ = s t. ComPEFT takes one threshold and s = alpha * std(x) over the whole adapter
    with alpha tuned on validation data; here threshold and scale are per slot by default (an adapter's B is far
    smaller than its A and would be trimmed away), and s comes from the delta itself:

    * "mean": the mean kept magnitude, which minimises ||x - x^||;
    * "norm": ||x^|| = ||x||;
    * "unbiased": <x^, x> = ||x||^2 (the scale of EDEN, Vargaftik et al., 2022, arXiv 2108.08842), as if the kept
      coordinates were a random rotation's.

    Coordinates that tie with the threshold are all kept; zeros never are.

    With `context`, mask and signs are one arithmetic code (Witten, Neal and Cleary, 1987) whose chances both ends
    learn on the way, with contexts mixed as in PAQ7 (Mahoney, 2005): how dense the column is, how dense the row so
    far, and how well the row's earlier signs foretell the next one. What is decoded is the same.
    Where the plain parts take H(k) + k bits for each coordinate of a slot at density k, as many as independent
    coordinates need, at densities 0.01, 0.05, 0.1, 0.2 and 0.5 the code takes of that

    * 0.77, 0.72, 0.70, 0.69, 0.68 on the weights of a LoRA of GPT-Neo-125M (r = 8, queries and values); at density
      0.1, 0.55 on its B alone, which began at zero, and 0.86 on its A alone, which holds its random start too;
    * 0.94, 0.89, 0.87, 0.86, 0.84 on the demo's first local training (r = 8, 8 steps);
    * 1.015, 1.007, 1.004, 1.003, 1.001 on 300,000 independent normal numbers.

    One core codes and decodes 30 to 45 million parameters a second at densities up to 0.2 and r = 8 (0.12 to 0.18 GB/s
    of float32), 20 at density 1; the cost of a kept coordinate grows with r up to r = 64.

    Args:
        density: fraction kept of each slot (or of the whole), in (0, 1].
        scale: which s.
        threshold: "slot" or "global".
        context: code coordinates by what is learned from those before them: fewer bytes, and slower.
    """

    density: float = 0.2
    scale: Scale = "mean"
    threshold: Literal["slot", "global"] = "slot"
    context: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        check_scale(self.scale)
        if self.threshold not in ("slot", "global"):
            raise ValueError(f"threshold must be 'slot' or 'global', got {self.threshold!r}")
        if not isinstance(self.context, bool):
            raise ValueError(f"context must be True or False, got {self.context!r}")

    def _bounds(self, space: Space) -> NDArray[np.int64]:
        bounds = space.bounds if self.threshold == "slot" else (0, space.numel)
        return np.asarray(bounds, dtype=np.int64)

    def layout(self, space: Space) -> Layout:
        """Scales, a mask over all coordinates, and one sign (1 is negative) for each kept one in order; or one code."""
        scale = Field("numbers", len(self._bounds(space)) - 1)
        if self.context:
            most = kernels.context.most_bytes(space.numel)
            return {"scale": scale, "stream": Field("numbers", most, ragged=True, dtype="uint8")}
        return {
            "scale": scale,
            "mask": Field("plane", space.numel),
            "sign": Field("plane", space.numel, ragged=True),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Select exactly (no sampling), pack, scale; on a GPU where the delta lies there, to the same bits."""
        mask, signs, kept, factors = self._planes(delta, self._bounds(space))
        if self.context:
            stream = kernels.context.encode(mask, signs, space.numel, grids(space), self.density)
            return {"scale": Numbers(factors), "stream": Numbers(stream)}
        return {
            "scale": Numbers(factors),
            "mask": Plane(mask, space.numel),
            "sign": Plane(signs, int(kept.sum())),
        }

    def _planes(
        self, delta: Float[Tensor, " d"], bounds: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
        """Mask and signs, and how many coordinates each slot keeps and its scale."""
        ks = np.array([max(1, round(self.density * n)) for n in np.diff(bounds).tolist()], np.int64)
        if device.holds(delta):
            packed = device.pack_ternary(device.finite(delta), bounds, ks, self._scales)
            return device.to_host(packed[0]), device.to_host(packed[1]), *packed[2:]
        x = finite(delta)
        thresholds = np.zeros(ks.size, dtype=np.float32)
        for j, (begin, end) in enumerate(pairwise(bounds)):
            if end > begin:
                thresholds[j] = kernels.magnitude_threshold(x[begin:end], int(ks[j]))
        mask, signs, kept, *sums = kernels.pack_ternary(x, bounds, thresholds)
        return mask, signs, kept, self._scales(kept, *sums).astype(np.float32)

    def _scales(
        self, kept: NDArray[np.int64], kept_l1: NDArray[np.float64], total_l2sq: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        found = scales(self.scale, total_l2sq, kept_l1, kept)
        if found.max(initial=0.0) > LARGEST:
            raise ValueError(f"scale {int(found.argmax())} of the delta is beyond float32; scale='mean' never is")
        return found

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """+s, -s or 0 for each coordinate.

        Raises:
            PayloadError: there are more or fewer signs than the mask keeps, or the stream is no code.
        """
        factors = take(parts, "scale", Numbers).values
        mask, signs = self._kept(parts, space)
        out = np.empty(space.numel, dtype=np.float32)
        kernels.unpack_ternary(mask, signs, self._bounds(space), factors, out)
        return torch.from_numpy(out)

    def planes(self, parts: Parts, space: Space, ctx: Context) -> TernaryDelta:
        """The same without writing it out.

        Raises:
            PayloadError: as `decode`.
        """
        factors = take(parts, "scale", Numbers).values
        return TernaryDelta.of(*self._kept(parts, space), self._bounds(space), factors)

    def _kept(self, parts: Parts, space: Space) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The mask, and the signs of what it keeps."""
        if self.context:
            stream = take(parts, "stream", Numbers).values
            return kernels.context.decode(stream, space.numel, grids(space), self.density)
        mask, sign = take(parts, "mask", Plane), take(parts, "sign", Plane)
        kept = kernels.popcount(mask.bits)
        if sign.numel != kept:
            raise PayloadError(Defect.COUNT, f"the mask keeps {kept} coordinates, but {sign.numel} signs came")
        return mask.bits, sign.bits
