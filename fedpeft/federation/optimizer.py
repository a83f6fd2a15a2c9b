"""The server's step: any `torch.optim` optimizer, with the merged delta as minus the gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedpeft import expressions
from fedpeft.errors import ConfigError

_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")  # no algorithm; asks for the loss again; for sparse gradients alone
_BEGUN = "begun"
_NAMES = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name not in _UNFIT}


@dataclass(frozen=True)
class ServerOptimizer:
    """A server optimizer by its expression, `SGD(lr=1.0, momentum=0.9, nesterov=True)`, and its pure step.

    Reddi et al., 2021, arXiv 2003.00295: FedAvg is SGD(lr=1.0), FedAvgM adds momentum, FedAdam is Adam; DiLoCo's
    outer step (Douillard et al., 2023, arXiv 2311.08105) is SGD with Nesterov momentum.

    Args:
        expression: class of `torch.optim` and its settings.

    Raises:
        ConfigError: the expression names no optimizer, or its settings are wrong.
    """

    expression: str = "SGD(lr=1.0)"

    def __post_init__(self) -> None:
        try:
            self.step(torch.zeros(1), torch.zeros(1), {})
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ConfigError(f"{self.expression!r} cannot step on the CPU: {error}") from None

    def step(
        self,
        vector: Float[Tensor, " d"],
        delta: Float[Tensor, " d"],
        state: Mapping[str, Tensor],
        within: Bool[Tensor, " d"] | None = None,
    ) -> tuple[Float[Tensor, " d"], dict[str, Tensor]]:
        """The adapter after a step, and the optimizer's state after it; {} is the state before the first.

        Args:
            vector: the adapter.
            delta: minus the gradient.
            state: of the optimizer.
            within: coordinates that the step is about; the others keep value and state. None for all.
        """
        if within is not None and not within.all():
            return self._step_within(vector, delta, state, within)
        parameter = torch.nn.Parameter(vector.clone())
        optimizer = self._make(parameter)
        if state:
            optimizer.state[parameter] = {name: tensor.clone() for name, tensor in state.items()}
        parameter.grad = -delta
        optimizer.step()
        after = {
            name: torch.as_tensor(value) for name, value in optimizer.state[parameter].items() if value is not None
        }
        return parameter.detach(), after

    def _step_within(
        self,
        vector: Float[Tensor, " d"],
        delta: Float[Tensor, " d"],
        state: Mapping[str, Tensor],
        within: Bool[Tensor, " d"],
    ) -> tuple[Float[Tensor, " d"], dict[str, Tensor]]:
        """A step of some coordinates, which have a state of their own, as if there were no others.

        What is one number for all (a count of steps) is kept by the first coordinate, under "NAME@FIRST".
        """
        first = f"@{int(within.nonzero()[0])}"
        own = {name.removesuffix(first): tensor for name, tensor in state.items() if name.endswith(first)}
        if own:  # else this is their first step
            own |= {name: tensor[within] for name, tensor in state.items() if tensor.shape == vector.shape}
        own.pop(_BEGUN, None)
        moved, after = self.step(vector[within], delta[within], own)
        kept = dict(state)
        for name, tensor in after.items():
            if tensor.shape == moved.shape:
                kept[name] = state.get(name, torch.zeros_like(vector)).masked_scatter(within, tensor)
            else:
                kept[name + first] = tensor
        return vector.masked_scatter(within, moved), kept | {_BEGUN + first: torch.ones(1, dtype=torch.bool)}

    def _make(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        def bound(kind: type) -> Any:
            def make(**settings: Any) -> torch.optim.Optimizer:
                optimizer: torch.optim.Optimizer = kind([parameter], **settings)
                return optimizer

            make.__name__ = kind.__name__
            return make

        names = {name: bound(kind) for name, kind in _NAMES.items()}
        optimizer: torch.optim.Optimizer = expressions.parse(self.expression, torch.optim.Optimizer, names)
        return optimizer
