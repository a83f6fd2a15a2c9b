"""Where the LoRA products of an adapter are: the pairs of slots A and B whose product is what the layer gains."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.errors import SpaceError
from fedpeft.space import Slot, Space
from fedpeft.strategies.factors import Factors

_A, _B = ".lora_A.weight", ".lora_B.weight"
_NOT_A_PRODUCT = ("use_bdlora", "kasa_config", "monteclora_config")


@dataclass(frozen=True)
class Module:
    """A layer with LoRA: its weight gains scaling * B A.

    Args:
        name: the layer's, as PEFT's state dict has it.
        shape: (out, in) of the product.
        rank: r, read from the slots.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scaling: float

    @property
    def a(self) -> str:
        """The slot of A, shape (r, in)."""
        return self.name + _A

    @property
    def b(self) -> str:
        """The slot of B, shape (out, r)."""
        return self.name + _B

    def factors(self, space: Space, vector: Float[Tensor, " d"] | None) -> Factors:
        """A copy of both factors in float64, zeros for None; the scaling that all updates share is left out."""
        if vector is None:
            vector = torch.zeros(1).expand(space.numel)
        return Factors(space.view(vector, self.b).double(), space.view(vector, self.a).double())


@lru_cache(maxsize=64)
def modules(space: Space) -> tuple[Module, ...]:
    """The layers of a space whose adapter is a product of two matrices, by name.

    A pair is `X.lora_A.weight` (r, in) and `X.lora_B.weight` (out, r). Everything else is no product of two slots
    and is averaged as it is: heads and biases, DoRA's magnitudes, the LoRA of embeddings (`lora_embedding_A`) and of
    convolutions (four dimensions), experts that share one pair (their slots hold several ranks), methods of PEFT
    that put something between A and B, and a B whose A is frozen, for which the mean of B is exact.
    """
    config = json.loads(space.config or "{}")
    if any(config.get(key) for key in _NOT_A_PRODUCT) or config.get("peft_type", "LORA") != "LORA":
        return ()
    slots = {slot.name: slot for slot in space.slots}
    found = (_module(slot, slots.get(slot.name.removesuffix(_A) + _B), config) for slot in space.slots)
    return tuple(module for module in found if module)


@lru_cache(maxsize=64)
def rest(space: Space) -> tuple[str, ...]:
    """The slots that are no factor of a product."""
    return tuple(slot.name for slot in space.slots if slot.name not in products_of(space))


def products_of(space: Space) -> frozenset[str]:
    """The slots that are a factor of a product."""
    return frozenset(name for module in modules(space) for name in (module.a, module.b))


def factors(space: Space, vector: Float[Tensor, " d"], config: Mapping[str, Any] | None = None) -> dict[str, Factors]:
    """The factors of a whole adapter by layer, with the scaling: what adapters of several ranks are merged from.

    Args:
        space: of the adapter.
        vector: the adapter.
        config: the PEFT config where it says more than the space does: in which order patterns stand.
    """
    known = json.loads(space.config or "{}") if config is None else config
    found = {}
    for module in modules(space):
        pair = module.factors(space, vector)
        found[module.name] = Factors(pair.b, pair.a, scaling(known, module.name, module.rank))
    return found


def scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What PEFT multiplies a layer's product with: alpha / r, or alpha / sqrt(r) (Kalajdzievski, 2023, 2312.03732).

    Of several patterns that fit, PEFT takes the first one; in a space, patterns stand in alphabetical order.

    Args:
        config: of PEFT; without a `lora_alpha`, 1 is the answer.
        layer: its name, as in PEFT's state dict.
        rank: at least 1.

    Raises:
        SpaceError: the alpha is no finite number.
    """
    if "lora_alpha" not in config:
        return 1.0
    alpha = _of_layer(config.get("alpha_pattern") or {}, layer, config["lora_alpha"])
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise SpaceError(
            f"lora_alpha of {layer} must be a finite number, got {alpha!r}; set lora_alpha, or the alpha_pattern of "
            "this layer, in adapter_config.json to what the adapter was trained with"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _module(a: Slot, b: Slot | None, config: Mapping[str, Any]) -> Module | None:
    if b is None or not a.name.endswith(_A) or len(a.shape) != 2 or len(b.shape) != 2:
        return None
    name, rank = a.name.removesuffix(_A), a.shape[0]
    expected = _of_layer(config.get("rank_pattern") or {}, name, config.get("r", rank))
    if (
        not b.shape[0] * rank * a.shape[1]
        or b.shape[1] != rank
        or (config.get("target_parameters") and rank != expected)
    ):
        return None
    return Module(name, (b.shape[0], a.shape[1]), rank, scaling(config, name, rank))


def _of_layer(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    name = layer.removeprefix("base_model.model.")
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)
