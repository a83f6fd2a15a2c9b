"""What an adapter is without its numbers, and the same products under another rank."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.adapters import Adapter
from fedpeft.errors import SpaceError
from fedpeft.merging.settings import changes_base
from fedpeft.space import Slot, Space
from fedpeft.strategies import factors
from fedpeft.strategies.lora import modules, rest, scaling


@dataclass(frozen=True, eq=False)
class Form:
    """An adapter without its numbers.

    Args:
        space: its slots.
        config: the PEFT config.
        constants: what the PEFT method stores beside its trainable parameters.
    """

    space: Space
    config: Mapping[str, Any]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def adapter(self, vector: Float[Tensor, " d"]) -> Adapter:
        """An adapter of this form."""
        return Adapter(self.space, vector, self.config, self.constants)

    def with_settings(self, settings: Mapping[str, Any]) -> "Form":
        """The same with other settings; of the space is what is set and is no name of the base model."""
        known = {**json.loads(self.space.config or "{}"), **settings}
        for name in ("base_model_name_or_path", "revision"):
            known.pop(name, None)
        kept = {key: value for key, value in known.items() if value not in (None, False, {}, [], "")}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return Form(Space(self.space.slots, text, self.space.base), {**self.config, **settings}, self.constants)

    def with_ranks(self, ranks: Mapping[str, int]) -> "Form":
        """The LoRA of the same layers, some with other ranks and a scaling of 1.

        Args:
            ranks: of layers, at least 1; the others keep theirs, and their scaling.

        Raises:
            SpaceError: the adapter's beginning was taken from the base model, by its rank.
        """
        if changes_base(self.config):
            how = self.config["init_lora_weights"]
            raise SpaceError(
                f"init_lora_weights is {how!r}, which takes as many directions out of the base model as the rank says, "
                "so the rank cannot change; save the adapters as plain LoRA (PEFT's path_initial_model_for_weight_"
                "conversion)"
            )
        layers = modules(self.space)
        kept = {m.name: (m.rank, scaling(self.config, m.name, m.rank) * m.rank) for m in layers}
        sizes = kept | {name: (rank, rank) for name, rank in ranks.items()}
        usual, alpha = Counter(sizes.values()).most_common(1)[0][0]
        # PEFT takes the first pattern that fits the end of a layer's name: whole names fit one layer alone.
        odd = {
            f"^{re.escape(name.removeprefix('base_model.model.'))}": size
            for name, size in sizes.items()
            if size != (usual, alpha)
        }
        shapes = {m.a: (sizes[m.name][0], m.shape[1]) for m in layers}
        shapes |= {m.b: (m.shape[0], sizes[m.name][0]) for m in layers}
        slots = tuple(Slot(s.name, shapes.get(s.name, s.shape), s.role) for s in self.space.slots)
        resized = Form(Space(slots, self.space.config, self.space.base), self.config, self.constants)
        patterns = {
            "rank_pattern": {k: r for k, (r, _) in odd.items()},
            "alpha_pattern": {k: a for k, (_, a) in odd.items()},
        }
        return resized.with_settings({"r": usual, "lora_alpha": alpha, **patterns, "use_rslora": False})

    def fitted(self, adapter: Adapter) -> Float[Tensor, " d"]:
        """An adapter's numbers in this form, which has the same layers: what it adds to the base model is the same.

        Where a rank is higher here, zeros are added; where it is lower, the components at the end must be zeros.

        Raises:
            SpaceError: they are not.
        """
        layers = modules(self.space)
        wanted = {m.name: scaling(self.config, m.name, m.rank) for m in layers}
        if adapter.space.slots == self.space.slots and all(
            scaling(adapter.config, m.name, m.rank) == wanted[m.name] for m in layers
        ):
            return adapter.vector
        vector = torch.zeros(self.space.numel)
        for name in rest(self.space):
            self.space.view(vector, name).copy_(adapter.space.view(adapter.vector, name))
        pairs = factors(adapter.space, adapter.vector, adapter.config)
        for module in layers:
            pair = pairs[module.name].rescaled(wanted[module.name])
            k = min(pair.rank, module.rank)
            if (pair.b[:, k:] @ pair.a[k:]).any():
                raise SpaceError(
                    f"{module.name}: the merged product has more than the {k} components that FlexLoRA(rank=...) asks "
                    "for, as what is done to its outcome adds some; ask for the adapters' rank"
                )
            self.space.view(vector, module.b)[:, :k] = pair.b[:, :k]
            self.space.view(vector, module.a)[:k] = pair.a[:k]
        return vector
