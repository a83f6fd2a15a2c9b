"""In which PEFT settings two adapters may differ and still be merged."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import SpaceError
from fedpeft.space import Slot, Space
from fedpeft.strategies import lora

# How an adapter was found, and what its slots say better: where it sits in the model, and which heads are saved.
_OF_NO_ACCOUNT = frozenset(
    {
        "d_initial",
        "eva_config",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "qalora_group_size",
        "target_modules",
        "task_type",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
_OF_RANK = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
_NOTHING_AT_ZERO = frozenset({"lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B"})
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


def comparable(space: Space) -> Space:
    """A space without the settings that merging need not heed.

    These are dropout, how weights were drawn, the task's name, and lists of modules, which the slots themselves tell.
    A way to begin that changes the base model too, such as PiSSA, stays: what such an adapter adds up to depends on it.
    """
    return _without(space, space.slots, ())


def of_products(space: Space, folder: Path) -> Space:
    """A space in which LoRA adapters of any rank and alpha are alike: a slot for each product.

    Raises:
        SpaceError: a part of the adapter depends on the rank and is no product of two matrices.
    """
    layers = lora.modules(space)
    others = [slot for slot in space.slots if slot.name in lora.rest(space)]
    odd = next((slot for slot in others if slot.role.startswith("lora_")), None)
    if odd or not layers:
        what = f"{odd} is no product of two matrices alone" if odd else "no layer has a LoRA product"
        raise SpaceError(
            f"{folder}: {what}, so its rank cannot change; merge adapters of one rank and alpha, by a strategy that "
            "keeps the rank"
        )
    return _without(space, [*others, *(Slot(m.name, m.shape, "product") for m in layers)], _OF_RANK)


def whole(space: Space) -> tuple[str, ...]:
    """The slots in which zero does not mean "as the base model": heads, magnitudes, vectors that multiply."""
    return tuple(slot.name for slot in space.slots if slot.role not in _NOTHING_AT_ZERO)


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether PEFT changes the base model, too, when it puts such an adapter on it."""
    return config.get("init_lora_weights") not in _PLAIN_BEGINNINGS


def agreed(key: str, found: Iterable[tuple[Path, Mapping[str, Any]]], way_out: str) -> Any:
    """The one value of a setting in all configs that have it; None if none has.

    Raises:
        SpaceError: two differ.
    """
    known = [(folder, config[key]) for folder, config in found if config.get(key) is not None]
    for folder, value in known[1:]:
        if value != known[0][1]:
            raise SpaceError(f"{folder}: {key} is {value!r}, but {known[0][0]} has {known[0][1]!r}; {way_out}")
    return known[0][1] if known else None


def _without(space: Space, slots: Iterable[Slot], more: Collection[str]) -> Space:
    config = json.loads(space.config or "{}")
    kept = {key: value for key, value in config.items() if key not in more and not _is_free(key, value)}
    return Space(tuple(slots), json.dumps(kept, sort_keys=True), space.base)


def _is_free(key: str, value: Any) -> bool:
    return key in _OF_NO_ACCOUNT or key.endswith("dropout") or (key.startswith("init_") and value in _PLAIN_BEGINNINGS)
