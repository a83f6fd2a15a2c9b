"""A first look at the folders: what must be right for any merge of them."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpeft.adapters import Adapter
from fedpeft.errors import SpaceError
from fedpeft.merging.form import Form
from fedpeft.merging.settings import agreed
from fedpeft.merging.sources import WEIGHTS, Source, Sources, load


def survey(
    folders: Sequence[Path], weights: Sequence[float] | None, start: Path | None = None, base: str | None = None
) -> Sources:
    """Read every folder once, and check what must be right for any merge of them.

    Args:
        folders: at least one.
        weights: one for each, > 0; None: all 1.
        start: the folder of an adapter that all were fine-tuned from.
        base: the name of the base model of all, where their configs name it differently.

    Raises:
        ValueError: there is no folder, or a weight is missing or not positive and finite.
        SpaceError: a folder is not as PEFT writes it, holds a value that is not finite, or belongs to another base
            model, another task, other classes or other constants than the first one.
    """
    weights = _checked(folders, weights)
    first, rows = load(folders[0]), []
    for folder, weight in zip(folders, weights, strict=True):
        adapter = first if folder == folders[0] else load(folder)
        rows.append(_row(folder, weight, adapter))
        _check_constants(folders[0], first, folder, adapter)
    origin: Source | None = None
    vector: Tensor | None = None
    if start is not None:
        adapter = load(start)
        _check_constants(folders[0], first, start, adapter)
        origin, vector = _row(start, 1.0, adapter), adapter.vector
    sources = Sources(tuple(rows), Form(first.space, first.config, first.constants), vector, origin)
    _check_labels(sources.all)
    return replace(sources, form=sources.form.with_settings(_settings(sources.all, base)))


def _checked(folders: Sequence[Path], weights: Sequence[float] | None) -> Sequence[float]:
    if not folders:
        raise ValueError("there is nothing to merge: name at least one adapter's folder")
    if weights is None:
        return [1.0] * len(folders)
    if len(weights) != len(folders):
        raise ValueError(f"expected {len(folders)} weights, one for each adapter, got {len(weights)}")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"a weight must be positive and finite, got {weight:g}; a negative factor is for `Scaled`")
    if not sys.float_info.min <= sum(weights) < math.inf:
        raise ValueError(
            f"the sum of weights must be a finite number of usual size, got {sum(weights):g}; give numbers around 1"
        )
    return weights


def _row(folder: Path, weight: float, adapter: Adapter) -> Source:
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    norm = float(torch.linalg.vector_norm(adapter.vector, dtype=torch.float64))
    return Source(folder, float(weight), sha256, norm, adapter.space, adapter.config, _labels(folder))


def _labels(folder: Path) -> tuple[str, ...] | None:
    path = folder / "labels.json"
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text())
        if not isinstance(names, list):
            raise TypeError(f"got a {type(names).__name__}")
    except (ValueError, TypeError) as error:
        raise SpaceError(f"{path}: expected a list of the classes' names: {error}") from None
    return tuple(map(str, names))


def _check_labels(rows: Sequence[Source]) -> None:
    known = [row for row in rows if row.labels is not None]
    for row in known[1:]:
        if row.labels != known[0].labels:
            raise SpaceError(
                f"{row.folder}/labels.json names other classes than {known[0].folder}/labels.json, or in another "
                "order, so a row of one head is another class in the other; merge heads of the same classes only"
            )


def _check_constants(first: Path, one: Adapter, folder: Path, other: Adapter) -> None:
    for name in sorted(one.constants.keys() | other.constants.keys()):
        mine, yours = one.constants.get(name), other.constants.get(name)
        if mine is None or yours is None or not torch.equal(mine, yours):
            raise SpaceError(
                f"{folder} does not fit {first}: the frozen {name!r} differs, so the same numbers mean something else; "
                "merge adapters that were made with one projection_prng_key"
            )


def _settings(rows: Sequence[Source], base: str | None) -> dict[str, Any]:
    """What the merged adapter says of its task and its base model."""
    configs = [(row.folder, row.config) for row in rows]
    task = agreed("task_type", configs, "merge adapters of one task")
    name, revision = base, None
    if base is None:
        way_out = "if that is one and the same model, give its name as base (--base)"
        name = agreed("base_model_name_or_path", configs, way_out)
        revision = agreed("revision", configs, way_out)
    return {"task_type": task, "base_model_name_or_path": name, "revision": revision}
