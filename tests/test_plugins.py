"""The examples' own codec and strategy, through a dotted path in a YAML."""

from pathlib import Path

import pytest
import yaml

from fedpeft.config import load
from fedpeft.errors import ConfigError
from fedpeft.simulation import Simulation
from tests import tiny


def test_a_yaml_names_classes_of_your_own(tmp_path: Path) -> None:
    raw = tiny.experiment(
        tmp_path,
        codec="ErrorFeedback(examples.custom_codec.Sampled(density=0.25))",
        strategy="examples.custom_strategy.TrustedMean(cap=10)",
        broadcast="examples.custom_codec.Sampled(density=0.5)",
    )
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
    with Simulation(load(tmp_path / "own.yaml"), tmp_path / "run") as running:
        rows = list(running.run())
        numel = running.facts()["numel"]
    assert [row["counted"] for row in rows] == [3, 3, 3]
    assert rows[-1]["up_bytes"] / 3 < 0.25 * 2 * numel + 500


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("codec", "examples.custom_codec.Sampeld(density=0.1)", "did you mean 'Sampled'"),
        ("codec", "examples.no_such_module.Codec()", "cannot import examples.no_such_module"),
        ("strategy", "examples.custom_codec.Sampled(density=0.1)", "expected a Strategy, got Sampled"),
        ("strategy", "examples.custom_strategy.TrustedMean()", "missing a required argument: 'cap'"),
    ],
)
def test_what_is_wrong_with_a_dotted_path_is_said(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, [f"{key}={text}"])
