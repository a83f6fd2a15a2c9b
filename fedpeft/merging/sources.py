"""The folders that are merged: checked before anything is merged, then read one at a time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from fedpeft.adapters import Adapter
from fedpeft.errors import SpaceError
from fedpeft.merging.form import Form
from fedpeft.merging.settings import comparable
from fedpeft.space import Space
from fedpeft.strategies import Update
from fedpeft.strategies.lora import modules, scaling

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """What is known of a folder.

    Args:
        folder: of the adapter.
        weight: > 0.
        sha256: of its adapter_model.safetensors, in hexadecimal.
        norm: L2, of all parameters.
        space: of the adapter.
        config: its PEFT config.
        labels: names of its classes, in order, where labels.json is beside it.
    """

    folder: Path
    weight: float
    sha256: str
    norm: float
    space: Space
    config: Mapping[str, Any]
    labels: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Sources(Sequence[Update]):
    """Adapters as updates, each read from its folder whenever it is asked for: memory for one, however many there are.

    Args:
        rows: the folders.
        form: in which adapters are read; a LoRA of another rank is fitted in.
        start: that all were fine-tuned from, shape (d,); None: whole adapters are what is merged.
        origin: the folder of the start.
    """

    rows: tuple[Source, ...]
    form: Form
    start: Float[Tensor, " d"] | None = None
    origin: Source | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Update: ...
    @overload
    def __getitem__(self, i: slice) -> "Sources": ...
    def __getitem__(self, i: int | slice) -> "Update | Sources":
        if isinstance(i, slice):
            return replace(self, rows=self.rows[i])
        vector = self.form.fitted(self.read(i))
        return Update(vector if self.start is None else vector - self.start, self.rows[i].weight)

    def read(self, i: int) -> Adapter:
        """An adapter as its folder has it.

        Raises:
            SpaceError: it has other slots than when it was checked.
        """
        adapter = load(self.rows[i].folder)
        if adapter.space != self.rows[i].space:
            raise SpaceError(f"{self.rows[i].folder} was changed while it was read; merge again")
        return adapter

    @property
    def all(self) -> tuple[Source, ...]:
        """The folders that are merged, and the start's."""
        return (*self.rows, *([self.origin] if self.origin else []))

    @property
    def alike(self) -> bool:
        """Whether all adapters, and the start, are of one space but for settings of no account."""
        return len({comparable(row.space) for row in self.all}) == 1

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes of all that name theirs."""
        return next((row.labels for row in self.rows if row.labels is not None), None)


def check_alike(sources: Sources, way_out: str = "") -> None:
    """Pass where all adapters, and their start, are of one space.

    Raises:
        SpaceError: says which slot or PEFT setting differs between which two.
    """
    first, *others = sources.all
    for row in others:
        try:
            comparable(first.space).check(comparable(row.space))
        except SpaceError as error:
            raise SpaceError(f"{row.folder} does not fit {first.folder}: {error}{way_out}") from None


def load(folder: Path) -> Adapter:
    """An adapter as its folder has it.

    Raises:
        SpaceError: it is not as PEFT writes it, its weights are pickled or in pieces, or a value is not finite.
    """
    _check_weights(folder)
    try:
        adapter = Adapter.load(folder)
        _check_scalings(folder, adapter)
    except (ValueError, AttributeError, TypeError, re.error) as error:
        raise SpaceError(f"{folder}: expected an adapter as PEFT writes it: {error}") from None
    if not torch.isfinite(adapter.vector).all():
        bad = next(
            name for name, tensor in adapter.space.tensors(adapter.vector).items() if not tensor.isfinite().all()
        )
        raise SpaceError(f"{folder}: {bad!r} holds a value that is not finite; leave this adapter out")
    return adapter


def _check_weights(folder: Path) -> None:
    """Pass but where the weights are there in a form that is not read."""
    if (folder / WEIGHTS).exists():
        return
    for path in sorted(folder.glob("adapter_model*")):
        if path.suffix in (".bin", ".pt", ".pth"):
            raise SpaceError(
                f"{folder}: {path.name} is pickled, and opening a pickle can run any code that is in it, so it is not "
                "opened; if you trust it, load it with PEFT and write it by save_pretrained(FOLDER, "
                "safe_serialization=True)"
            )
        if path.suffix == ".safetensors":
            raise SpaceError(
                f"{folder}: the weights are in pieces, such as {path.name}, which PEFT does not read either; put their "
                f"tensors together into one {WEIGHTS}, by safetensors.torch.load_file and save_file"
            )


def _check_scalings(folder: Path, adapter: Adapter) -> None:
    try:
        for module in modules(adapter.space):
            scaling(adapter.config, module.name, module.rank)
    except SpaceError as error:
        raise SpaceError(f"{folder}: {error}") from None
