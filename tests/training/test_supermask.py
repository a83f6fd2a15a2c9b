"""Supermasks: which weights scores choose, the straight-through gradient, and a run that votes with ranks."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedpeft import ranking
from fedpeft.federation import Plan
from fedpeft.simulation import simulate
from fedpeft.space import Slot, Space
from fedpeft.strategies import Mean
from fedpeft.training import Settings
from fedpeft.training.supermask import Supermask, trained
from tests import tiny
from tests.training.test_first_order import EXAMPLES, job, trainer

SPACE = Space(
    (
        Slot("m.lora_A.weight", (4, 9), "lora_A"),
        Slot("m.lora_B.weight", (7, 4), "lora_B"),
        Slot("s.bias", (), "head"),
        Slot("s.none", (0,), "head"),
    )
)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 1.0])
def test_the_highest_scores_choose_signed_constants(density: float) -> None:
    mask = Supermask(SPACE, density, seed=3)
    scores, constants = mask.first_scores(), mask.constants()
    assert torch.equal(ranking.scores(scores, SPACE), scores)
    adapter = mask.adapter(scores)
    for slot in SPACE.slots:
        own, chosen, whole = (SPACE.view(x, slot.name).flatten() for x in (scores, adapter, constants))
        count = min(slot.numel, max(1, round(density * slot.numel)))
        expected = torch.zeros(slot.numel)
        top = own.argsort(descending=True)[:count]
        expected[top] = whole[top]
        assert torch.equal(chosen, expected)
    a, b = (SPACE.view(constants, f"m.lora_{ab}.weight") for ab in "AB")
    assert torch.allclose(a.abs(), torch.tensor((1 / (9 * density)) ** 0.5)) and len(a.unique()) == 2
    assert torch.allclose(b.abs(), torch.tensor(0.3 * (1 / (4 * density)) ** 0.5)) and len(b.unique()) == 2
    assert not torch.equal(Supermask(SPACE, density, seed=4).constants(), constants)
    assert not torch.equal(Supermask(SPACE, density, seed=4).first_scores(), scores)


def test_equal_scores_choose_the_last_of_a_slot() -> None:
    assert SPACE.view(Supermask(SPACE, 0.25, 0).adapter(torch.zeros(SPACE.numel)), "m.lora_A.weight")[3].all()


def test_scores_learn_straight_through_and_the_weights_stay(tmp_path: Path) -> None:
    of = trainer(tiny.save_bert(tmp_path), "sequence-classification")
    mask = Supermask(of.adapted.space, 0.5, seed=0)  # the seed of the job's streams
    start, data = mask.first_scores(), of.encode(EXAMPLES)
    held = trained(of.adapted, start, 0.5, 0)
    weights = torch.linspace(-1, 1, of.adapted.space.numel)
    parts = of.adapted.space.tensors(weights).values()
    torch.stack([(p * w).sum() for p, w in zip(of.adapted.parameters(), parts, strict=True)]).sum().backward()
    held.pull()
    assert torch.allclose(held.parameters[0].grad, weights * mask.constants())
    (moved,) = of.train([job(of, start, local_steps=60, learning_rate=0.03, supermask=0.5)])
    before, after = (of.evaluate(mask.adapter(vector), data) for vector in (start, moved.vector))
    assert after["loss"] < 0.8 * before["loss"]
    (again,) = of.train([job(of, start, local_steps=60, learning_rate=0.03, supermask=0.5)])
    assert torch.equal(moved.vector, again.vector) and not torch.equal(moved.vector, start)


def test_a_run_of_federated_rank_learning(tmp_path: Path) -> None:
    more = {
        "training": {"local_steps": 5, "learning_rate": 0.05, "supermask": 0.5, "schedule": "constant"},
        "codec": "Ranks()",
        "broadcast": "Ranks()",
        "strategy": "RankVote()",
        "server_optimizer": "SGD(lr=1.0)",
    }
    rows = simulate(tiny.experiment(tmp_path, rounds=3, **more), tmp_path / "run")
    assert [row["refused"] for row in rows] == [0, 0, 0]
    saved = safetensors.torch.load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        assert int((tensor != 0).sum()) == max(1, round(0.5 * tensor.numel())), name
        assert len(tensor[tensor != 0].abs().unique()) == 1


def test_what_does_not_go_with_a_supermask_is_refused() -> None:
    class Needy(Mean):
        needs = frozenset({"fisher"})

    with pytest.raises(ValueError, match="merges weights, and a supermask has scores; set supermask: 0"):
        Plan(rounds=1, strategy=Needy(), settings=Settings(supermask=0.5))
    with pytest.raises(ValueError, match=r"supermask must lie in \[0.0, 1\], got 1.5"):
        Settings(supermask=1.5)
