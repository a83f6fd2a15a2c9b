"""Whole experiments on tiny models: sources, partitions, tasks, and what a resumed run refuses."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedpeft.codecs import Context, Parts, Ternary
from fedpeft.config import Experiment
from fedpeft.errors import ConfigError, JournalError
from fedpeft.simulation import Simulation, resume, simulate
from fedpeft.space import Space
from tests import tiny


def run(folder: Path, name: str = "run", **more: object) -> tuple[list[dict], dict[str, torch.Tensor]]:
    rows = simulate(tiny.experiment(folder, **more), folder / name)
    return rows, safetensors.torch.load_file(folder / name / "adapter" / "adapter_model.safetensors")


def test_the_demo_in_small_learns(tmp_path: Path) -> None:
    more = {"training": {"local_steps": 20, "learning_rate": 1e-2}, "server_optimizer": "SGD(lr=1.0)"}
    with Simulation(Experiment.model_validate(tiny.experiment(tmp_path, rounds=20, **more)), tmp_path / "r") as s:
        rows = list(s.run())
        before = s.server.before()
    assert rows[-1]["accuracy"] > 0.8 > 0.5 > before["accuracy"]
    assert rows[-1]["loss"] < before["loss"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    _, first = run(tmp_path, "a")
    _, second = run(tmp_path, "b")
    _, third = run(tmp_path, "c", seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_language_model_is_fine_tuned(tmp_path: Path) -> None:
    base = tiny.save_llama(tmp_path / "llama")
    rows, _ = run(
        tmp_path,
        model={"name": str(base), "task": "causal-lm", "max_length": 16, "threads": 1},
        peft="LoraConfig(r=4, target_modules='all-linear')",
        data={
            "source": f"LocalFile({str(tiny.save_colours(tmp_path / 'x.jsonl'))!r}, group='team')",
            "partition": "ByGroup()",
        },
        sites=4,
        rounds=4,
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["counted"] == 4


@pytest.mark.parametrize(
    "where",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
def test_a_delta_is_encoded_where_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    genuine, seen = Ternary.encode, []

    def watched(codec: Ternary, delta: torch.Tensor, space: Space, ctx: Context) -> Parts:
        seen.append(delta.device.type)
        return genuine(codec, delta, space, ctx)

    monkeypatch.setattr(Ternary, "encode", watched)
    raw = tiny.experiment(tmp_path, rounds=1, codec="ErrorFeedback(Ternary(density=0.2))")
    rows = simulate({**raw, "model": {**raw["model"], "device": where}}, tmp_path / "run")
    assert seen == [where] * 3
    assert rows[0]["counted"] == 3


@pytest.mark.parametrize("method", ["IA3Config(target_modules=['key', 'value'], feedforward_modules=[])",
                                    "VeraConfig(r=4, target_modules=['query', 'value'])",
                                    "PromptTuningConfig(num_virtual_tokens=3)"])  # fmt: skip
def test_other_methods_federate_unchanged(tmp_path: Path, method: str) -> None:
    rows, _ = run(tmp_path, peft=method, rounds=1)
    assert rows[0]["counted"] == 3


def test_more_sites_than_examples_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"do not fit: sites: expected 1 to 8"):
        run(tmp_path, sites=1000)


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    run(tmp_path, rounds=1)
    with pytest.raises(JournalError, match=r"is of another run: peft was .*r=2.*now .*r=3"):
        run(tmp_path, rounds=2, peft="LoraConfig(r=3, target_modules=['query', 'value'])")


def test_a_run_that_is_running_is_not_taken_up(tmp_path: Path) -> None:
    chosen = Experiment.model_validate(tiny.experiment(tmp_path))
    with Simulation(chosen, tmp_path / "r"), pytest.raises(JournalError, match="another process is working"):
        Simulation(chosen, tmp_path / "r")
    with Simulation(chosen, tmp_path / "r"):
        pass


def test_resume_finds_a_run_by_name_and_says_what_there_is(tmp_path: Path) -> None:
    run(tmp_path / "runs", "tiny", rounds=1)
    experiment, folder = resume("tiny", rounds=5, runs=tmp_path / "runs")
    assert (experiment.rounds, folder.name) == (5, "tiny")
    with pytest.raises(JournalError, match="did you mean 'tiny'"):
        resume("tinny", runs=tmp_path / "runs")


def test_a_site_that_went_missing_on_disk_gets_the_adapter_again(tmp_path: Path) -> None:
    run(tmp_path, rounds=2)
    for path in (tmp_path / "run" / "sites").iterdir():
        path.unlink()
    rows = simulate(tiny.experiment(tmp_path, rounds=3), tmp_path / "run")
    assert [row["counted"] for row in rows] == [3, 3, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"peft": "LoraConfig(r=2, target_modules=['no_such'])"}, "peft: LoraConfig does not fit this model"),
        (
            {"codec": "per_slot({'lora_C': Ternary()}, default=Identity())"},
            "codec, broadcast or strategy does not fit the adapter",
        ),
        ({"model": {"name": "no/such-model"}}, "model: 'no/such-model' cannot be loaded"),
        ({"roundz": 3}, "roundz: there is no such key; did you mean 'rounds'"),
    ],
)
def test_what_does_not_fit_is_said_and_leaves_no_folder(tmp_path: Path, more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tiny.experiment(tmp_path, **more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fewer_rounds_than_are_done_are_refused(tmp_path: Path) -> None:
    run(tmp_path, rounds=2)
    with pytest.raises(ConfigError, match="has done 2 already, got 1"):
        simulate(tiny.experiment(tmp_path, rounds=1), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
