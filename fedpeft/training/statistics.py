"""Measuring what some strategies need beyond the delta, one example at a time so that nothing is padded."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedpeft.adapters import AdaptedModel
from fedpeft.errors import ConfigError
from fedpeft.space import Slot
from fedpeft.strategies.statistics import gram_slots, head_slots


class Squares:
    """The mean of squared gradients: the diagonal Fisher information where each is of a log-likelihood.

    Args:
        adapted: whose trained parameters it is of.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self._adapted = adapted
        self._sums = [torch.zeros_like(p, dtype=torch.float64) for p in adapted.parameters()]
        self._count = 0

    def add(self, log_likelihood: Float[Tensor, ""]) -> None:
        """Count one example."""
        parameters = self._adapted.parameters()
        gradients = torch.autograd.grad(log_likelihood, parameters, allow_unused=True)
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.double().square())
        self._count += 1

    def mean(self) -> dict[str, Tensor]:
        """By slot."""
        slots = self._adapted.space.slots
        return {slot.name: total / max(self._count, 1) for slot, total in zip(slots, self._sums, strict=True)}


class Grams:
    """The mean of z z^T over the inputs z of each LoRA B, in the forward passes within `watching`.

    Args:
        adapted: whose modules it is of.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self._modules = _owners(adapted, gram_slots(adapted.space))
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(self._modules, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count every input."""
        hooks = [module.register_forward_pre_hook(self._counting(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _counting(self, name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            z = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            self._sums[name] = self._sums.get(name, 0) + z.T @ z
            self._counts[name] += len(z)

        return count

    def mean(self) -> dict[str, Tensor]:
        """By slot; zero where a module was never called."""
        found = {}
        for name, module in self._modules.items():
            rank = module.get_parameter("weight").shape[1]
            total = self._sums.get(name, torch.zeros(rank, rank, dtype=torch.float64))
            found[name] = (total + total.T) / (2 * max(self._counts[name], 1))
        return found


class Heads:
    """The mean of u u^T and of e_y u^T over the inputs u = [x, 1] of each linear head, for the class y of each.

    Args:
        adapted: whose heads it is of.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self._modules = _owners(adapted, head_slots(adapted.space))
        self._inputs: dict[str, Tensor] = {}
        self._sums = {
            slot.name: torch.zeros(slot.shape[1] + 1 + slot.shape[0], slot.shape[1] + 1, dtype=torch.float64)
            for slot in head_slots(adapted.space)
        }
        self._count = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the inputs of the last forward pass."""

        def keep(name: str) -> Any:
            return lambda module, inputs: self._inputs.__setitem__(name, inputs[0].detach())

        hooks = [module.register_forward_pre_hook(keep(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, targets: Int[Tensor, " n"]) -> None:
        """Count the examples of the last forward pass, which are of these classes."""
        for name, x in self._inputs.items():
            if x.shape[:-1] != targets.shape:
                raise ConfigError(
                    f"'head' is measured where a head gets a vector for each text; this model's gets {tuple(x.shape)} "
                    f"for {len(targets)}: choose a strategy without RidgeHead"
                )
            u = torch.cat([x, x.new_ones(len(x), 1)], 1).double().cpu()
            total, width = self._sums[name], u.shape[1]
            total[:width] += u.T @ u
            total[width:].index_add_(0, targets.cpu(), u)
        self._count += len(targets)

    def mean(self) -> dict[str, Tensor]:
        """By slot; zero where a head was never called."""
        found = {}
        for name, total in self._sums.items():
            width = total.shape[1]
            found[name] = total / max(self._count, 1)
            found[name][:width] = (found[name][:width] + found[name][:width].T) / 2
        return found


def _owners(adapted: AdaptedModel, slots: Collection[Slot]) -> dict[str, nn.Module]:
    """The module whose weight each slot is."""
    owners = {id(m.weight): m for m in adapted.model.modules() if isinstance(getattr(m, "weight", None), Tensor)}
    trained = dict(zip((slot.name for slot in adapted.space.slots), adapted.parameters(), strict=True))
    return {slot.name: owners[id(trained[slot.name])] for slot in slots}


def drawn(logits: Float[Tensor, "n classes"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A class for each row, drawn by its softmax from a number in [0, 1); never one whose logit is -inf."""
    chances = logits.detach().double().softmax(dim=1).cumsum(dim=1)
    # In (0, total]: the first class whose running sum reaches it has a chance of its own.
    reached = (1 - uniform.to(chances))[:, None] * chances[:, -1:]
    return torch.searchsorted(chances, reached).squeeze(1)
