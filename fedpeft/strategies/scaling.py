"""Lengths: of the merged delta, and of each client's."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft import kernels
from fedpeft.strategies.base import Context, Update
from fedpeft.strategies.lora import modules
from fedpeft.strategies.wrapping import After, Before
from fedpeft.ternary import TernaryDelta

_FIRST = frozenset({"lora_A", "lora_embedding_A"})  # of the two factors of a product


@dataclass(frozen=True)
class Scaled(After):
    """The merged delta times a factor: lambda of task arithmetic, theta = theta_0 + lambda sum_k w_k tau_k.

    Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi and Farhadi, 2023, arXiv 2212.04089, section 2; a factor
    below zero is their negation: it takes what was learned away. Zhang, Chen, Liu and He, 2023, arXiv 2306.14870, do
    the same to PEFT modules. A LoRA's step is the product B A, so to negate a whole adapter negate one of its factors:
    `by_slot({"*.lora_*B*": Scaled(Mean(), -1.0)}, default=Mean())`; minus both is the same product again. Around a
    strategy that merges the products of whole adapters, such as `FlexLoRA()`, the factor is the product's.

    The literature's sum over tasks is `Scaled(Mean(), lambda * number of tasks)` at equal weights. What says where
    parameters shall be cannot be scaled in a run: a part of the way to other factors, or to another order, is neither.

    >>> from fedpeft.space import Slot, Space
    >>> from fedpeft.strategies.mean import Mean
    >>> ctx = Context(Space((Slot("a", (2,), "head"),)))
    >>> Scaled(Mean(), 0.5).merge([Update(torch.tensor([1.0, 4.0])), Update(torch.tensor([3.0, 4.0]))], ctx)
    tensor([1., 2.])

    Args:
        strategy: merges.
        factor: finite; may be negative.
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.factor):
            raise ValueError(f"factor must be finite, got {self.factor}")

    @property
    def offline(self) -> str:
        """Why the strategy inside cannot merge in a run; or that it settles, and a factor leads elsewhere."""
        if self.strategy.settles and self.factor != 1:
            return f"{self.strategy} says where parameters shall be, and {self.factor:g} times the way leads elsewhere"
        return self.strategy.offline

    def after(self, merged: Float[Tensor, " d"], ctx: Context) -> Float[Tensor, " d"]:
        """The product; of whole adapters whose LoRA products the strategy inside merges, A stays as it is."""
        scaled = (merged.double() * self.factor).float()
        settled = frozenset() if ctx.start is not None else self.strategy.settled(ctx.space)
        if any({module.a, module.b} <= settled for module in modules(ctx.space)):
            for slot in ctx.space.slots:
                if slot.role in _FIRST:
                    ctx.space.view(scaled, slot.name).copy_(ctx.space.view(merged, slot.name))
        return scaled


@dataclass(frozen=True)
class ClipNorm(Before):
    """Each client's delta scaled down to a norm bound, x_k min(1, C / ||x_k||_2), then merged.

    McMahan, Ramage, Talwar and Zhang, 2018, arXiv 1710.06963, section 3, at the server: no client can pull further than
    C, however long its delta. Deltas that are merely different are not held back. The codec's `Clip` does it at the
    site, where the server has to take it on trust. A ternary delta stays in bit planes: its norm is the root of
    sum_j s_j^2 times the number of coordinates that piece j keeps.

    >>> from fedpeft.space import Slot, Space
    >>> from fedpeft.strategies.mean import Mean
    >>> ctx = Context(Space((Slot("a", (2,), "head"),)))
    >>> ClipNorm(Mean(), 5.0).merge([Update(torch.tensor([30.0, 40.0])), Update(torch.tensor([1.0, 0.0]))], ctx)
    tensor([2., 2.])

    Args:
        strategy: merges.
        norm: C > 0, of the whole delta.
    """

    norm: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.norm < math.inf:
            raise ValueError(f"norm must be positive and finite, got {self.norm}")

    @property
    def ternary(self) -> bool:  # type: ignore[override]
        """Whether the strategy inside takes bit planes as they are."""
        return self.strategy.ternary

    def before(self, update: Update, ctx: Context) -> Update:
        """The clipped update."""
        length = _norm(update.sent)
        if length <= self.norm:
            return update
        return replace(update, sent=update.sent * float(np.float32(self.norm / length)))


def _norm(delta: Float[Tensor, " d"] | TernaryDelta) -> float:
    """The Euclidean norm; a ternary delta is not written out."""
    if isinstance(delta, Tensor):
        return float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    mask = delta.mask.view(np.uint8)[: (delta.numel + 7) // 8]
    kept = kernels.kept_by_slot(mask, delta.bounds)
    return math.sqrt(float(kept @ delta.scales.astype(np.float64) ** 2))
