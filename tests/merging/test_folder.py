"""The folder that is written, and what reading the others takes."""

import hashlib
import json
import weakref

import pytest
import torch

from fedpeft.adapters import Adapter
from fedpeft.errors import SpaceError
from fedpeft.merging import merge_adapters, stack_adapters
from fedpeft.strategies import (
    DARE,
    TIES,
    FlexLoRA,
    Krum,
    Mean,
    Scaled,
    SubspaceStep,
    by_slot,
)
from tests.merging.made import (
    METHODS,
    changed,
    make,
)


def test_names_of_classes_are_kept_where_they_are_the_same(three, tmp_path):
    copies = [changed(folder, peft_version=str(tmp_path.name)) for folder in three]
    for copy in copies[:2]:
        (copy / "labels.json").write_text('["no", "yes"]')
    merge_adapters(copies, Mean()).save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "labels.json").read_text()) == ["no", "yes"]
    assert "num_labels=2" in (tmp_path / "m" / "README.md").read_text()
    merge_adapters(three, Mean()).save(tmp_path / "m", force=True)
    assert not (tmp_path / "m" / "labels.json").exists()
    (copies[2] / "labels.json").write_text('["yes", "no"]')
    with pytest.raises(SpaceError, match="c/labels.json names other classes than .*a/labels.json"):
        merge_adapters(copies, Mean())
    for text in ("{}", "[", "\x00"):
        (copies[2] / "labels.json").write_text(text)
        with pytest.raises(SpaceError, match="expected a list of the classes' names"):
            merge_adapters(copies, Mean())


def test_nothing_is_written_over_unasked(three, tmp_path):
    merged = merge_adapters(three, Mean())
    (tmp_path / "m").mkdir()
    merged.save(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    other = merge_adapters(three, Scaled(Mean(), 2.0))
    with pytest.raises(FileExistsError, match="there already"):
        other.save(tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    other.save(tmp_path / "m", force=True)
    assert torch.equal(Adapter.load(tmp_path / "m").vector, other.adapter.vector)
    with pytest.raises(FileExistsError, match="one of the adapters"):
        merged.save(three[1].parent / "x" / ".." / "b", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        merged.save(tmp_path / "file", force=True)


def test_the_card_says_what_was_merged_how(three, tmp_path):
    merge_adapters(three[1:], DARE(TIES(trim="none"), 0.5), [1, 2.5], start=three[0], seed=7).save(tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    for folder in three:
        assert hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest() in card
    assert repr(DARE(TIES(trim="none"), 0.5)) in card
    assert "| `c` | 2.5 |" in card
    assert "seed 7" in card
    assert "library_name: peft" in card
    assert str(three[0].parent) not in card.replace(json.dumps(str(three[0].parent)), "")


@pytest.mark.parametrize("strategy", [Mean(), TIES(), SubspaceStep(), DARE(Mean(), 0.5)], ids=repr)
def test_one_folder_at_a_time_is_in_memory(three, monkeypatch, strategy):
    alive: weakref.WeakSet[Adapter] = weakref.WeakSet()
    most, load = 0, Adapter.load

    def counted(folder):
        nonlocal most
        adapter = load(folder)
        alive.add(adapter)
        most = max(most, len(alive))
        return adapter

    monkeypatch.setattr(Adapter, "load", staticmethod(counted))
    merged = merge_adapters(three * 10, strategy)
    error = merged.product_error()
    assert 0 < error < 10
    assert most <= 3


def test_the_estimated_error_is_near_the_exact_one(three):
    few, many = merge_adapters(three, Mean()), merge_adapters(three * 4, Mean())
    assert few.product_error() == pytest.approx(many.product_error(), rel=1e-6)  # 64 probes see all of 16 or 24 inputs
    assert stack_adapters(three * 4).product_error() == 0


@pytest.mark.parametrize(
    ("strategy", "doubtful"),
    [(TIES(), True), (DARE(Mean(), 0.5), True), (Mean(), False), (FlexLoRA(), False), (Krum(0), False),
     (by_slot({"head": Mean()}, default=TIES()), False)],
    ids=repr,
)  # fmt: skip
def test_a_head_that_is_taken_for_a_change_is_named(base, three, tmp_path, strategy, doubtful):
    folders = [make(base, tmp_path / str(seed), METHODS["head"], seed) for seed in range(3)]
    merged = merge_adapters(folders, strategy)
    assert merged.doubtful == (("base_model.model.lm_head.weight",) if doubtful else ())
    assert merge_adapters(folders[1:], TIES(), start=folders[0]).doubtful == ()
    assert merge_adapters(three, TIES()).doubtful == ()
