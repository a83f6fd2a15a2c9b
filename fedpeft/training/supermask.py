"""A supermask: the adapter's weights are random and stay so, and what is trained says which of them are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedpeft import ranking
from fedpeft.adapters import AdaptedModel
from fedpeft.random import Purpose, Stream
from fedpeft.space import Space

_GAIN_B = 0.3


@dataclass(frozen=True, eq=False)
class Supermask:
    """Edge-popup over an adapter (Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari, 2020, arXiv 1911.13299).

    The vector that is trained, sent and merged holds a score for each parameter. The adapter that a model gets has,
    in each slot, constants where the scores are among the largest, and zeros elsewhere: the max(1, round(density *
    size)) largest count, of equal ones the last. The constants are +-sqrt(1 / (density * fan_in)) with signs drawn from
    the run's seed, so that all who take part have the same: the paper's scaled signed Kaiming constant, without the
    gain of a ReLU, which no adapter has, and 0.3 of it in LoRA's B, so that a random product does not drown the base
    model; the number is ours, and was tried on a tiny model only. The gradient of a score is that of its weight times
    its constant, as if all weights were used (straight through, section 3). The authors take the scores' absolute
    values; here a score may be negative, as the ranks of FRL are.

    Args:
        space: of the adapter.
        density: share of each slot that is used, in (0, 1].
        seed: of the run.
    """

    space: Space
    density: float
    seed: int

    def constants(self) -> Float[Tensor, " d"]:
        """The weights as they would be without a mask."""
        words = Stream(self.seed, Purpose.SUPERMASK).words(self.space.numel)
        out = torch.from_numpy(np.where(words & np.uint32(1), np.float32(1), np.float32(-1)))
        for slot, (begin, end) in zip(self.space.slots, pairwise(self.space.bounds), strict=True):
            fan_in = prod(slot.shape[1:]) if len(slot.shape) > 1 else slot.numel
            gain = _GAIN_B if slot.role == "lora_B" else 1.0
            out[begin:end] *= gain * sqrt(1 / (self.density * max(1, fan_in)))
        return out

    def first_scores(self) -> Float[Tensor, " d"]:
        """Scores in random order, which a run begins with."""
        words = Stream(self.seed, Purpose.SUPERMASK, part=1).words(2 * self.space.numel)
        return ranking.scores(torch.from_numpy((words.view(np.uint64) >> np.uint64(11)).astype(np.float64)), self.space)

    def adapter(self, scores: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """The adapter that scores choose: what a model computes with, and what is saved."""
        return self._masked(scores, self.constants())

    def _masked(self, scores: Float[Tensor, " d"], constants: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        ranks, out = ranking.ranks(scores, self.space), constants.clone()
        for begin, end in pairwise(self.space.bounds):
            size = end - begin
            out[begin:end][ranks[begin:end] < size - max(1, round(self.density * size))] = 0
        return out


class Direct:
    """An adapter as an optimizer moves it: its own parameters.

    Args:
        adapted: the model, whose adapter is set to the start.
        start: shape (d,).
    """

    def __init__(self, adapted: AdaptedModel, start: Float[Tensor, " d"]) -> None:
        self._adapted = adapted
        adapted.write(start)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What the optimizer moves."""
        return self._adapted.parameters()

    def pull(self) -> None:
        """After a backward pass: give `parameters` their gradients."""

    def push(self) -> None:
        """After a step: make the model follow `parameters`."""

    def read(self) -> Float[Tensor, " d"]:
        """What was trained, where it was."""
        return self._adapted.read(self.parameters[0].device)


class Scored(Direct):
    """The scores of a supermask as an optimizer moves them; the model's adapter is the masked one.

    Args:
        adapted: the model.
        start: scores, shape (d,).
        mask: which adapter scores choose.
    """

    def __init__(self, adapted: AdaptedModel, start: Float[Tensor, " d"], mask: Supermask) -> None:
        self._mask, self._constants, self._scores = mask, mask.constants(), nn.Parameter(start.clone())
        super().__init__(adapted, mask.adapter(start))

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The scores, as one vector."""
        return [self._scores]

    def pull(self) -> None:
        """The gradient of a score is its weight's, times the constant."""
        found = self._adapted.parameters()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in found]
        self._scores.grad = torch.cat([g.reshape(-1).cpu() for g in gradients]) * self._constants
        for parameter in found:
            parameter.grad = None

    def push(self) -> None:
        """Mask anew."""
        self._adapted.write(self._mask._masked(self._scores.detach(), self._constants))

    def read(self) -> Float[Tensor, " d"]:
        """The scores."""
        return self._scores.detach().clone()


def trained(adapted: AdaptedModel, start: Float[Tensor, " d"], density: float, seed: int) -> Direct:
    """What an optimizer moves from a start: the adapter, or, with a density of more than 0, a supermask's scores."""
    return Scored(adapted, start, Supermask(adapted.space, density, seed)) if density else Direct(adapted, start)
