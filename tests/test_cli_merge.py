"""`fedpeft merge`, as a user types it."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedpeft.adapters import Adapter
from fedpeft.cli import app
from fedpeft.space import Slot, Space

ROOT = Path(__file__).parents[1]
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/model", "target_modules": ["q"]}


def save(folder, seed, rank=2, head=False, **settings):
    slots = [Slot("base_model.model.q.lora_A.weight", (rank, 6), "lora_A")]
    slots += [Slot("base_model.model.q.lora_B.weight", (5, rank), "lora_B")]
    slots += [Slot("base_model.model.score.weight", (2, 6), "head")] if head else []
    space = Space(tuple(slots))
    numbers = torch.randn(space.numel, generator=torch.Generator().manual_seed(seed))
    Adapter(space, numbers, CONFIG | {"r": rank, "modules_to_save": ["score"] if head else None} | settings).save(
        folder
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder but for three adapters, of which D has another rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for seed, name in enumerate("ABC"):
        save(tmp_path / name, seed)
    save(tmp_path / "D", 9, rank=3)
    return tmp_path


def typed(line, code=0):
    done = CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == code, done.output
    return " ".join(done.output.replace("│", " ").split())


def vector(name):
    return Adapter.load(Path(name)).vector


def product(name):
    adapter = Adapter.load(Path(name))
    a, b = (adapter.space.view(adapter.vector, slot.name) for slot in adapter.space.slots)
    return adapter.config["lora_alpha"] / adapter.config["r"] * (b @ a)


def test_a_merge_is_written_and_told(here):
    said = typed("merge A/ B/ C/ --strategy 'TIES(density=1.0)' --weights 2,1,1 --out M/")
    assert "A 2 22" in said
    assert "merged by TIES(density=1.0" in said
    assert re.search(r"distance from the mean of LoRA products: [0-9.]+ of its size", said)
    assert f"M 22 {float(vector('M').norm()):.4g}" in said
    assert "A merge of 3 adapters of org/model" in (here / "M" / "README.md").read_text()
    assert json.loads((here / "M" / "adapter_config.json").read_text())["r"] == 2


def test_without_a_strategy_it_is_the_mean(here):
    typed("merge A B --out M --weights 3,1")
    assert torch.allclose(vector("M"), (3 * vector("A") + vector("B")) / 4)


def test_other_ranks_are_merged_exactly_or_cut(here):
    assert "distance from the mean of LoRA products: " in typed("merge A D --exact --out E")
    assert "of its size" in typed("merge A D --strategy 'FlexLoRA(rank=1)' --out F")
    sizes = [json.loads((here / name / "adapter_config.json").read_text())["r"] for name in "EF"]
    assert sizes == [5, 1]


def test_a_start_is_what_changes_are_taken_from(here):
    typed("merge B C --start A --strategy 'Scaled(Mean(), 2.0)' --out M")
    assert torch.allclose(vector("M"), vector("B") + vector("C") - vector("A"), atol=1e-6)


def test_a_strategy_of_ones_own(here):
    (here / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedpeft.strategies import Strategy\n\n"
        "@dataclass(frozen=True)\n"
        "class Last(Strategy):\n"
        "    def merge(self, updates, ctx):\n"
        "        return updates[len(updates) - 1].delta\n"
    )
    typed("merge A B C --strategy 'mine.Last()' --out M")
    assert torch.equal(vector("M"), vector("C"))


def test_a_head_that_is_taken_for_a_change_is_noted(here):
    for seed, name in enumerate(("X", "Y")):
        save(here / name, seed, head=True)
    assert "note: 'base_model.model.score.weight' (slots of its kind: 1) is no change from zero" in typed(
        "merge X Y --strategy 'TIES()' --out M"
    )
    said = typed("""merge X Y --strategy "by_slot({'head': Mean()}, default=TIES())" --out N""")
    assert "note:" not in said
    said = typed("""merge X Y --strategy "by_slot({'*.lora_*': Mean()}, default=TIES())" --out O""")
    assert "note: 'base_model.model.score.weight'" in said
    assert "note:" not in typed("merge X Y --strategy 'IsoC(SubspaceStep())' --out P")


def test_the_strategies_are_listed_without_adapters(here):
    said = typed("merge --list")
    assert "TIES yes" in said
    assert "Fisher yes `fisher`" in said
    assert "Keep each client's largest values, elect a sign by majority" in said


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("merge A B", 2, "Missing option '--out'"),
        ("merge --out M", 2, "Missing argument 'ADAPTERS...'"),
        ("merge A nowhere --out M", 1, "error: nowhere: expected adapter_config.json"),
        (
            "merge A D --out M",
            1,
            "error: D does not fit A: slot 'base_model.model.q.lora_A.weight': expected shape (2, 6)",
        ),
        ("merge A B --out A", 1, "error: A is one of the adapters"),
        ("merge A B --out B/../A --force", 1, "is one of the adapters"),
        ("merge A B --out C", 1, "error: C is there already; choose another folder, or write over it"),
        ("merge A B --out M --weights 1", 2, "expected 2 weights, one for each adapter, got 1"),
        ("merge A B --out M --weights 1e308,1e308", 2, "must be a finite number of usual size, got inf"),
        ("merge A B --out M --weights 1,x", 2, "--weights: expected numbers with commas"),
        ("merge A B --out M --weights=-1,1", 2, "positive and finite, got -1"),
        ("merge A B --out M --strategy 'TEIS()'", 1, "did you mean 'TIES'?"),
        ("merge A B --out M --strategy 'TIES(density=2.0)'", 1, "density must lie in (0, 1], got 2.0"),
        ("merge A B --out M --strategy 'no.such.Rule()'", 1, "cannot import no.such"),
        ("merge A B --out M --strategy 'RegMean()'", 2, "needs 'gram' of somebody's data"),
        ("merge A B --out M --strategy 'RankVote()'", 2, "merges the scores of a supermask"),
        ("merge A B --out M --start C --strategy 'FlexLoRA(rank=3)'", 2, "from a start the adapter keeps its rank, 2"),
        ("merge A B --out M --start C --strategy 'Scaled(FlexLoRA(), 2.0)'", 2, "leave out the start (--start)"),
        ("merge A B --out M --strategy 'Krum(1)'", 2, "merges at least 5 updates, got 2"),
        ("merge A B --out M --exact --strategy 'Mean()'", 2, "--exact goes with neither --strategy nor --start"),
        ("merge A B --out M --exact --start C", 2, "--exact goes with neither"),
        ("merge A B --out M --seed -1", 2, "is not in the range"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(here, line, code, message):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert message in typed(line, code)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_factor_is_that_of_the_product(here):
    typed("merge A --strategy 'Scaled(FlexLoRA(), -2.0)' --out M")
    assert torch.allclose(product("M"), -2 * product("A"), atol=1e-5)


def test_pickled_weights_stay_closed(here):
    (here / "D" / "adapter_model.safetensors").rename(here / "D" / "adapter_model.bin")
    said = typed("merge A D --out M", 1)
    assert "error: D: adapter_model.bin is pickled, and opening a pickle can run any code" in said
    assert "safe_serialization=True" in said


def test_force_writes_over(here):
    typed("merge A B --out C --force")
    assert torch.allclose(vector("C"), (vector("A") + vector("B")) / 2)


@pytest.mark.parametrize("page", ["README.md", "docs/merging.md"])
def test_the_commands_on_the_page_work(here, page):
    lines = re.findall(r"^fedpeft (merge .*?)(?: +#.*)?$", (ROOT / page).read_text(), re.M)
    assert len(lines) >= 3
    for line in lines:
        typed(f"{line} --force" if "--out" in line else line)
    names = "Scaled|Mean|TIES|DARE|DELLA|Breadcrumbs|FlexLoRA|KnOTS|by_slot"
    rules = re.findall(rf"`((?:{names})\([^`]*\))`", (ROOT / page).read_text())
    for i, rule in enumerate(rules if page != "README.md" else []):
        typed(f"merge A B C --strategy {shlex.quote(rule)} --out rule{i}")
