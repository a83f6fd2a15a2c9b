"""Whole experiments on a tiny model whose strategies need more than the delta."""

from pathlib import Path

import pytest

from fedpeft.config import Experiment
from fedpeft.errors import ConfigError
from fedpeft.simulation import Simulation, simulate
from tests import tiny

MORE = {"training": {"local_steps": 10, "learning_rate": 1e-2}, "server_optimizer": "SGD(lr=1.0)"}


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", ["Fisher()", "RegMean()", "RidgeHead(Mean(), every=2)"])
def test_a_run_learns_and_is_taken_up_to_the_same_bits(tmp_path: Path, strategy: str) -> None:
    rows = simulate(tiny.experiment(tmp_path, strategy=strategy, rounds=8, **MORE), tmp_path / "whole")
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] or rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(row["counted"] == 3 for row in rows)
    raw = tiny.experiment(tmp_path, strategy=strategy, rounds=8, **MORE)
    with Simulation(Experiment.model_validate(raw), tmp_path / "parts") as broken_off:
        next(broken_off.run())
    simulate(raw, tmp_path / "parts")
    assert adapter(tmp_path / "whole") == adapter(tmp_path / "parts")
    simulate(tiny.experiment(tmp_path, rounds=8, **MORE), tmp_path / "mean")
    assert adapter(tmp_path / "mean") != adapter(tmp_path / "whole")


def test_what_it_costs_is_counted(tmp_path: Path) -> None:
    """Two bytes a parameter for a Fisher information, next to nothing for Grams of rank 2."""
    up = {}
    for strategy in ("Mean()", "Fisher()", "RegMean()"):
        (row,) = simulate(tiny.experiment(tmp_path, strategy=strategy, rounds=1), tmp_path / strategy)
        up[strategy] = row["up_bytes"] / 3
    numel = row["up_bytes_fp32"] / 3 / 4
    assert 2 * numel < up["Fisher()"] - up["Mean()"] < 2 * numel + 400
    assert 0 < up["RegMean()"] - up["Mean()"] < 400


def test_an_adapter_without_a_b_has_no_gram(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="strategy does not fit the adapter: 'gram' is of the B of linear layers"):
        simulate(
            tiny.experiment(
                tmp_path,
                strategy="RegMean()",
                peft="IA3Config(target_modules=['key', 'value'], feedforward_modules=[])",
            ),
            tmp_path / "run",
        )
