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
from fedpeft.codecs.base import Codec, Context, Field, Layout, Numbers, Parts, Plane, take
from fedpeft.errors import Defect, PayloadError
from fedpeft.space import Space


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

    Args:
        density: fraction kept of each slot (or of the whole), in (0, 1].
        scale: which s.
        threshold: "slot" or "global".
    """

    density: float = 0.2
    scale: Literal["mean", "norm", "unbiased"] = "mean"
    threshold: Literal["slot", "global"] = "slot"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if self.scale not in ("mean", "norm", "unbiased"):
            raise ValueError(f"scale must be 'mean', 'norm' or 'unbiased', got {self.scale!r}")
        if self.threshold not in ("slot", "global"):
            raise ValueError(f"threshold must be 'slot' or 'global', got {self.threshold!r}")

    def _bounds(self, space: Space) -> NDArray[np.int64]:
        bounds = space.bounds if self.threshold == "slot" else (0, space.numel)
        return np.asarray(bounds, dtype=np.int64)

    def layout(self, space: Space) -> Layout:
        """Scales, a mask over all coordinates, and one sign (1 is negative) for each kept one in order."""
        return {
            "scale": Field("numbers", len(self._bounds(space)) - 1),
            "mask": Field("plane", space.numel),
            "sign": Field("plane", space.numel, ragged=True),
        }

    def encode(self, delta: Float[Tensor, " d"], space: Space, ctx: Context) -> Parts:
        """Select exactly (no sampling), pack, scale."""
        x = np.ascontiguousarray(delta.detach().cpu().numpy(), dtype=np.float32)
        if not kernels.all_finite(x):
            raise ValueError(f"coordinate {int(np.flatnonzero(~np.isfinite(x))[0])} of the delta is not finite")
        bounds = self._bounds(space)
        thresholds = np.zeros(len(bounds) - 1, dtype=np.float32)
        for j, (begin, end) in enumerate(pairwise(bounds)):
            if end > begin:
                thresholds[j] = kernels.magnitude_threshold(x[begin:end], max(1, round(self.density * (end - begin))))
        mask, signs, kept, kept_l1, total_l2sq = kernels.pack_ternary(x, bounds, thresholds)
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = {
                "mean": kept_l1 / kept,
                "norm": np.sqrt(total_l2sq / kept),
                "unbiased": total_l2sq / kept_l1,
            }[self.scale]
        scales = np.where(kept > 0, scales, 0.0).astype(np.float32)
        return {
            "scale": Numbers(scales),
            "mask": Plane(mask, space.numel),
            "sign": Plane(signs, int(kept.sum())),
        }

    def decode(self, parts: Parts, space: Space, ctx: Context) -> Float[Tensor, " d"]:
        """+s, -s or 0 for each coordinate."""
        scales, mask, sign = take(parts, "scale", Numbers), take(parts, "mask", Plane), take(parts, "sign", Plane)
        kept = kernels.popcount(mask.bits)
        if sign.numel != kept:
            raise PayloadError(Defect.COUNT, f"the mask keeps {kept} coordinates, but {sign.numel} signs came")
        out = np.empty(space.numel, dtype=np.float32)
        kernels.unpack_ternary(mask.bits, sign.bits, self._bounds(space), scales.values, out)
        return torch.from_numpy(out)
