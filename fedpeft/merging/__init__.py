"""Adapters that are there already, merged without their base model: the strategies, offline.

>>> import pathlib, tempfile, torch
>>> from fedpeft.adapters import Adapter
>>> from fedpeft.space import Slot, Space
>>> from fedpeft.strategies import Mean
>>> folder, slots = pathlib.Path(tempfile.mkdtemp()), (Slot("k.ia3_l", (2,), "ia3_l"),)
>>> for name, numbers in ("a", [1.0, 2.0]), ("b", [3.0, 6.0]):
...     Adapter(Space(slots), torch.tensor(numbers), {"peft_type": "IA3"}).save(folder / name)
>>> merged = merge_adapters([folder / "a", folder / "b"], Mean(), [1.0, 3.0])
>>> merged.adapter.vector
tensor([2.5000, 5.0000])
>>> merged.save(folder / "m")
>>> sorted(path.name for path in (folder / "m").iterdir())
['README.md', 'adapter_config.json', 'adapter_model.safetensors']
"""

from fedpeft.merging.merge import merge_adapters, stack_adapters
from fedpeft.merging.merged import Merged, check_free
from fedpeft.merging.sources import Source

__all__ = ["Merged", "Source", "check_free", "merge_adapters", "stack_adapters"]
