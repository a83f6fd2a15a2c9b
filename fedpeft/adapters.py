"""The one place that knows Hugging Face PEFT: a model's trainable state as a vector, and adapter folders.

Any PEFT method whose trainable parameters all appear in its state dict federates as it is; a method that keeps more
(prefix tuning with a projection, say) is refused by name.
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedpeft import expressions
from fedpeft.durable import write_durably
from fedpeft.errors import ConfigError, SpaceError
from fedpeft.random import Stream, scoped_torch_generator
from fedpeft.space import Slot, Space

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NOT_OF_THE_SPACE = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "auto_mapping",
        "runtime_config",
    }
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter without its base model: what is saved, sent and merged.

    Args:
        space: its slots.
        vector: all trainable parameters, shape (d,), float32.
        config: the PEFT config as a dictionary.
        constants: what the PEFT method stores beside its trainable parameters (VeRA's frozen projections).
    """

    space: Space
    vector: Float[Tensor, " d"]
    config: Mapping[str, Any]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the folder that `PeftModel.from_pretrained` loads; the base model is not needed."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {**self.space.tensors(self.vector), **self.constants}
        packed = {name: tensors[name].contiguous() for name in sorted(tensors)}
        write_durably(folder / _WEIGHTS, safetensors.torch.save(packed, metadata={"format": "pt"}))
        text = json.dumps({**self.config, "inference_mode": True}, indent=2, sort_keys=True)
        write_durably(folder / _CONFIG, text.encode() + b"\n")

    @staticmethod
    def load(folder: Path, base: str = "") -> "Adapter":
        """Read a PEFT folder, made by anyone, without its base model.

        Args:
            folder: holds adapter_config.json and adapter_model.safetensors.
            base: hexadecimal SHA-256 of the base model, where it is known.

        Raises:
            SpaceError: a file is missing or unreadable; pickled weights are never opened.
        """
        try:
            config = json.loads((folder / _CONFIG).read_text())
            tensors = safetensors.torch.load_file(folder / _WEIGHTS)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise SpaceError(f"{folder}: expected {_CONFIG} and {_WEIGHTS} as PEFT writes them: {error}") from None
        frozen = {name for name in tensors if _is_frozen(name)}
        slots = tuple(Slot(k, tuple(t.shape), _role(k, config)) for k, t in tensors.items() if k not in frozen)
        space = Space(slots, _canonical(config), base)
        vector = space.flatten({name: tensor for name, tensor in tensors.items() if name not in frozen})
        return Adapter(space, vector, config, {name: tensors[name] for name in frozen})


class AdaptedModel:
    """A frozen base model with one trainable adapter, resident for as long as its owner lives.

    Args:
        base: a Hugging Face model, on the CPU.
        config: any PEFT config.
        base_hash: hexadecimal SHA-256 of the base model's weights.
        base_name: what `base_model_name_or_path` shall say in a saved adapter.
        stream: draws the adapter's initial values; the same on every site.

    Raises:
        ConfigError: PEFT cannot put such an adapter on this model.
        SpaceError: the PEFT method has trainable parameters that its state dict does not hold.
    """

    def __init__(self, base: nn.Module, config: Any, base_hash: str, base_name: str, stream: Stream) -> None:
        import peft

        with scoped_torch_generator(stream), warnings.catch_warnings():
            # PEFT asks transformers by a name that it has deprecated.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            try:
                self.model = peft.get_peft_model(base, config)
            except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
                raise ConfigError(f"peft: {type(config).__name__} does not fit this model: {error}") from None
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        state = peft.get_peft_model_state_dict(self.model, save_embedding_layers=False)
        self._parameters = _match(dict(self.model.named_parameters()), state)
        made = self.model.peft_config["default"].to_dict()
        self.config = _plain({**made, "base_model_name_or_path": base_name})
        self.space = Space(
            tuple(Slot(k, tuple(p.shape), _role(k, self.config)) for k, p in self._parameters.items()),
            _canonical(self.config),
            base_hash,
        )
        self.constants = {k: t.detach().cpu().clone() for k, t in state.items() if k not in self._parameters}

    def read(self, device: torch.device | None = None) -> Float[Tensor, " d"]:
        """The adapter as it is now, on a device; None: on the CPU."""
        return self.space.flatten({name: p.detach() for name, p in self._parameters.items()}, device)

    def write(self, vector: Float[Tensor, " d"]) -> None:
        """Set the adapter."""
        with torch.no_grad():
            for name, tensor in self.space.tensors(vector).items():
                self._parameters[name].copy_(tensor)

    @contextmanager
    def training(self, slots: Collection[str] | None = None) -> Iterator[None]:
        """Within, only these slots (None: all) get gradients."""
        frozen = [p for name, p in self._parameters.items() if slots is not None and name not in slots]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in slot order."""
        return [self._parameters[slot.name] for slot in self.space.slots]

    def adapter(self, vector: Float[Tensor, " d"]) -> Adapter:
        """An adapter of this model's space, ready to be saved."""
        return Adapter(self.space, vector, self.config, self.constants)


def parse_config(text: str) -> Any:
    """The PEFT config that an expression such as `LoraConfig(r=8, target_modules=["query"])` names.

    Raises:
        ConfigError: PEFT has no such config, or refuses its settings.
    """
    import peft

    names = {n: v for n, v in vars(peft).items() if isinstance(v, type) and issubclass(v, peft.PeftConfig)}
    return expressions.parse(text, peft.PeftConfig, names)


def for_task(config: Any, task: str) -> Any:
    """The config with PEFT's task type set, so that a classifier's new head is trained and saved."""
    import peft

    config.task_type = {
        "sequence-classification": peft.TaskType.SEQ_CLS,
        "causal-lm": peft.TaskType.CAUSAL_LM,
    }[task]
    return config


def _match(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Which parameter each key of PEFT's state dict stands for."""
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    by_storage = {(t.data_ptr(), t.shape): key for key, t in state.items()}
    found = {
        by_storage[p.data_ptr(), p.shape]: name for name, p in trained.items() if (p.data_ptr(), p.shape) in by_storage
    }
    for name in sorted(trained.keys() - set(found.values())):
        # Prompt embeddings are saved as a copy: the key is the one whose values are the parameter's.
        p = trained[name]
        keys = [
            k for k, t in state.items() if k not in found and t.shape == p.shape and torch.equal(t.cpu(), p.detach())
        ]
        if len(keys) != 1:
            raise SpaceError(
                f"the trainable parameter {name!r} {tuple(p.shape)} is not in PEFT's state dict of this method; "
                "choose a PEFT config whose trainable state is its state dict"
            )
        found[keys[0]] = name
    return {key: trained[name] for key, name in found.items()}


def _is_frozen(key: str) -> bool:
    return key.rpartition(".")[2] in ("vera_A", "vera_B", "tinylora_A", "tinylora_B", "tinylora_P")


def _role(key: str, config: Mapping[str, Any]) -> str:
    """The last word that names something; "head" within a module that is saved, whose path may be of several words.

    PEFT compares letters, so that "classifier" saves a "pre_classifier" too, which is no head.
    """
    if any(f".{name}." in f".{key}." for name in config.get("modules_to_save") or ()):
        return "head"
    words = [word for word in key.split(".") if word not in ("weight", "bias", "default") and not word.isdigit()]
    return words[-1] if words else key


def _plain(value: Any) -> Any:
    """What JSON can hold; names (which PEFT keeps in sets) are sorted."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)
    if isinstance(value, list | tuple):
        plain = [_plain(v) for v in value]
        return sorted(plain) if all(isinstance(v, str) for v in plain) else plain
    return getattr(value, "value", value)


def _canonical(config: Mapping[str, Any]) -> str:
    """The settings that make two adapters compatible; unset ones are left out, so that PEFT may add new ones."""
    kept = {
        k: v for k, v in _plain(config).items() if k not in _NOT_OF_THE_SPACE and v not in (None, False, {}, [], "")
    }
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))
