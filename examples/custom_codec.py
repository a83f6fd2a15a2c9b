"""A codec of your own: name it in a YAML as `codec: ErrorFeedback(examples.custom_codec.Sampled(density=0.1))`."""

from dataclasses import dataclass

import numpy as np
import torch

from fedpeft.codecs import Codec, Context, Field, Layout, Numbers, Parts, take
from fedpeft.space import Space


@dataclass(frozen=True)
class Sampled(Codec):
    """Send a random fraction of the coordinates in fp16; which ones, both ends draw from the round's shared stream."""

    density: float

    def _chosen(self, space: Space, ctx: Context) -> np.ndarray:
        return np.sort(ctx.shared.permutation(space.numel)[: max(1, round(self.density * space.numel))])

    def layout(self, space: Space) -> Layout:
        """One number for each chosen coordinate, and no index."""
        return {"values": Field("numbers", max(1, round(self.density * space.numel)), dtype="float16")}

    def encode(self, delta: torch.Tensor, space: Space, ctx: Context) -> Parts:
        """Pick the chosen coordinates."""
        return {"values": Numbers(delta.numpy()[self._chosen(space, ctx)].astype(np.float16))}

    def decode(self, parts: Parts, space: Space, ctx: Context) -> torch.Tensor:
        """Put them back."""
        values = take(parts, "values", Numbers).values
        delta = torch.zeros(space.numel)
        delta[torch.from_numpy(self._chosen(space, ctx))] = torch.from_numpy(values.astype(np.float32))
        return delta
