"""The code of those who proposed a rule, as functions that a test can call.

It is looked for in the folder that FEDPEFT_REFERENCES names, which holds a checkout `OWNER__NAME` for each of these
repositories of GitHub, at these commits or near them; a test whose file is not there is skipped.

    duguodong7/pcb-merging 31fa2dc              nik-dim/tall_masks 088dc81
    prateeky2806/ties-merging a4cdf2b           prateeky2806/ComPEFT 083ed51
    SPIN-UMass/FRL 2da5907                      r-three/mats df71e97
    bloomberg/dataless-model-merging 92247ae    tanganke/fusion_bench 0.2.33 (or its wheel, unpacked)
    gstoica27/KnOTS 01a940c                     alibaba/FederatedScope 4643e1a (its branch FlexLoRA)
    ATP-1010/FederatedLLM c40814c               yangguohao/fedex-lora 904e096 (a copy with the authors' rule)
    krishnap25/RFA 8435c86                      LPD-EPFL/byzfl 0.0.11 (or its wheel, unpacked)
    vio1etus/FLPoison eb74fb2

    FEDPEFT_REFERENCES=FOLDER python -m pytest -rP tests/strategies/test_authors_*.py

prints, for each comparison, the largest difference over the largest number of the reference.

Most of those files import much that is not wanted here, so definitions are taken out of them and run as they stand,
with the modules that they use; what they ask of their own projects a test gives them.
"""

import __future__

import ast
import copy
import json
import logging
import os
import re
import time
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Update

VARIABLE = "FEDPEFT_REFERENCES"
REFERENCES = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"set {VARIABLE} to a folder with the authors' code, as tests/strategies/authors.py says",
)
SPACE = Space(
    (
        Slot("m.lora_A.weight", (4, 48), "lora_A"),
        Slot("m.lora_B.weight", (80, 4), "lora_B"),
        Slot("m.score.weight", (7, 48), "head"),
    )
)
_USED = {
    **{module.__name__: module for module in (copy, logging, os, re, time, torch)},
    **{"np": np, "nn": torch.nn, "F": torch.nn.functional, "from_numpy": torch.from_numpy},
    **{"deepcopy": copy.deepcopy, "defaultdict": defaultdict, "OrderedDict": OrderedDict},
    **{"normalize": torch.nn.functional.normalize, "tqdm": lambda items, *_, **__: items},
}


def theirs(path, *names, **given):
    """Functions, methods and classes of a file, by name, in one namespace with what they are given."""
    file = Path(os.environ[VARIABLE], path)
    if not file.is_file():
        pytest.skip(f"{path} is not in the folder of {VARIABLE}")
    wanted = [node for node in ast.walk(ast.parse(_source(file))) if getattr(node, "name", None) in names]
    space = _USED | given
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module(wanted, []), str(file), "exec", flags, dont_inherit=True), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def _source(file):
    if file.suffix != ".ipynb":
        return file.read_text(encoding="utf-8")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def cohort(clients, weights=None, space=SPACE):
    """Deltas whose slots have very different lengths."""
    draw = np.random.default_rng(clients)
    lengths = np.repeat([1.0, 0.1, 3.0][: len(space.slots)], [slot.numel for slot in space.slots])
    rows = torch.from_numpy(draw.standard_normal((clients, space.numel)) * lengths).float()
    return [Update(row, float(weight)) for row, weight in zip(rows, weights or [1.0] * clients, strict=True)]


def rows(updates):
    """Their deltas, in float64."""
    return torch.stack([update.delta for update in updates]).double()


def named(updates, space=SPACE):
    """Their tensors by name, in float64."""
    return [space.tensors(update.delta.double()) for update in updates]


def agree(what, ours, reference, tolerance=1e-6):
    """That no number differs by more than this fraction of the largest."""
    ours, reference = (torch.as_tensor(np.asarray(x)).double().reshape(-1) for x in (ours, reference))
    difference = float((ours - reference).abs().max() / reference.abs().max())
    print(f"{what}: {difference:.1e}")
    assert difference <= tolerance


class Models:
    """A pool of models as FusionBench asks for them, of what a cohort's adapters are, on a base of zeros."""

    has_pretrained = True

    def __init__(self, updates):
        self._tensors = named(updates)
        self.model_names = list(range(len(updates)))

    def load_pretrained_model(self):
        """A base model of zeros."""
        return self.load_model("_pretrained_")

    def load_model(self, which):
        """One linear layer for each slot."""
        model = torch.nn.ModuleDict()
        for letter, slot in zip("abc", SPACE.slots, strict=True):
            model[letter] = torch.nn.Linear(*reversed(slot.shape), bias=False, dtype=torch.float64)
            zeros = torch.zeros(slot.shape).double()
            model[letter].weight.data = zeros if which == "_pretrained_" else self._tensors[which][slot.name].clone()
        return model
