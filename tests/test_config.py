"""One YAML is one experiment; what is wrong with it is said key by key."""

from pathlib import Path

import pytest
import yaml

from fedpeft.codecs import ErrorFeedback, Ternary
from fedpeft.config import Experiment, load
from fedpeft.errors import ConfigError
from fedpeft.strategies import TIES


def test_an_experiment_survives_its_own_yaml(tmp_path: Path) -> None:
    chosen = load(None, ["rounds=3", "training.learning_rate=1e-4", "strategy=TIES(elect='count')"])
    (tmp_path / "config.yaml").write_text(chosen.to_yaml())
    assert load(tmp_path / "config.yaml") == chosen
    assert (chosen.rounds, chosen.training.learning_rate) == (3, 1e-4)


def test_the_plan_holds_what_the_expressions_name() -> None:
    plan = load(
        None, ["codec=ErrorFeedback(Ternary(0.1, scale='norm'), decay=0.9)", "strategy=TIES(trim='none')"]
    ).plan()
    assert plan.codec == ErrorFeedback(Ternary(density=0.1, scale="norm"), decay=0.9)
    assert plan.strategy == TIES(trim="none")
    assert plan.update_codec == Ternary(density=0.1, scale="norm")


WRONG = {
    "roundz: 3": "roundz: there is no such key; did you mean 'rounds'?",
    "training: {local_step: 3}": "training.local_step: there is no such key; did you mean 'local_steps'?",
    "rounds: many": "rounds: Input should be a valid integer.*got 'many'",
    "rounds: 0": "rounds: Input should be greater than or equal to 1, got 0",
    "model: {task: classify}": "model.task: Input should be 'sequence-classification' or 'causal-lm', got 'classify'",
    "codec: Ternari(density=0.2)": "codec: .*unknown name 'Ternari'; did you mean 'Ternary'",
    "codec: Ternary(densty=0.2)": "codec: .*Ternary has no setting 'densty'; did you mean 'density'",
    "codec: Ternary(density=2.0)": r"codec: .*density must lie in \(0, 1\], got 2.0",
    "codec: Ternary": r"codec: 'Ternary' names a class; call it: Ternary\(\)",
    "codec: Mean()": "codec: .*unknown name 'Mean'",
    "strategy: Meen()": "strategy: .*did you mean 'Mean'",
    "server_optimizer: SDG(lr=1)": "server_optimizer: .*did you mean 'SGD'",
    "server_optimizer: LBFGS()": "server_optimizer: .*unknown name 'LBFGS'",
    "server_optimizer: SGD(lr=-1)": "server_optimizer: .*Invalid learning rate",
    "peft: LoraConfig(rank=8)": "peft: .*LoraConfig has no setting 'rank'",
    "data: {source: StdlibDoc()}": "data.source: .*did you mean 'StdlibDocs'",
    "data: {partition: Dirichlet(alpha=0)}": "data.partition: .*alpha",
    "{sites: 3, cohort: 4}": "cohort: expected at most the 3 sites, got 4",
    "broadcast: ErrorFeedback(Ternary())": "broadcast: takes a codec without ErrorFeedback",
    "name: ../etc": "name: String should match pattern",
    "- a list": "expected keys and values, got list",
    "a: [": "is not YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_names_the_key_and_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=WRONG[text]):
        load(tmp_path / "x.yaml")


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("rounds: 0\nsitez: 2\ntraining: {batch_size: no}\n")
    with pytest.raises(ConfigError, match="(?s)rounds.*training.batch_size.*sitez"):
        load(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "expected key=value"),
        ("rounds.more=1", "'rounds' is a value|rounds: "),
        ("sedd=1", "did you mean 'seed'"),
    ],
)
def test_overrides_are_checked_too(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, [override])


def test_a_missing_file_is_said() -> None:
    with pytest.raises(ConfigError, match="no-such.yaml: No such file"):
        load(Path("no-such.yaml"))


def test_the_schema_is_the_readmes(tmp_path: Path) -> None:
    raw = yaml.safe_load(Experiment().to_yaml())
    assert set(raw) == set(Experiment.model_fields)


def test_an_override_of_an_expression_is_taken_as_it_is_written() -> None:
    text = 'per_slot({"lora_A": Uniform(bits=4)}, default=Ternary(density=0.2))'
    assert load(None, [f"codec={text}"]).codec == text
    assert load(None, ["name=1", "seed=3", "training.learning_rate=1e-3"]).name == "1"


def test_an_object_stands_for_its_expression() -> None:
    assert Experiment(codec=Ternary(density=0.1)).plan().codec == Ternary(density=0.1)
