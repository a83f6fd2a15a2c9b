import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from fedpeft.config.peer import PeerRun, load_peer, load_run
from fedpeft.errors import ConfigError
from fedpeft.keys.peer import check_address, check_name

LABELS = "labels=[a, b]"
HASHES = [f"{name}={'0' * 64}" for name in ("organiser", "base_sha256", "start_sha256")]


def described(*settings: str) -> PeerRun:
    return load_run(None, (LABELS, *settings), begun=False)


def test_a_run_is_known_by_all_that_it_says(tmp_path: Path) -> None:
    run = described(*HASHES)
    (tmp_path / "run.yaml").write_text(run.to_yaml())
    assert load_run(tmp_path / "run.yaml") == run
    assert load_run(tmp_path / "run.yaml").id == run.id
    changes = ("seed=1", "name=other", "labels=[b, a]", "scalar.unit=1e-3", "segments=2", "delta.local_steps=9")
    assert len({described(*HASHES, change).id for change in ("seed=0", *changes)}) == 1 + len(changes)


def test_the_order_of_keys_and_comments_are_no_part_of_a_run(tmp_path: Path) -> None:
    run = described(*HASHES)
    lines = run.to_yaml().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("seed"))
    (tmp_path / "run.yaml").write_text("\n".join(["# ours", lines[begin], *lines[:begin], *lines[begin + 1 :]]))
    assert load_run(tmp_path / "run.yaml").id == run.id


def test_a_run_without_an_organiser_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(described().to_yaml())
    with pytest.raises(ConfigError, match="fedpeft peer init"):
        load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("labels=[]", "labels: a classifier needs"),
        ("mode=ring", "mode: Input should be 'scalar', 'delta' or 'gossip'"),
        ("scalar.largest=128", "scalar.largest"),
        ("scalr.unit=1", "did you mean 'scalar'"),
        ("organiser=ab", "organiser"),
        ("delta.codec=Tern()", "delta.codec: .*Ternary"),
    ],
)
def test_a_wrong_key_is_answered_with_the_right_one(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        described(setting)


def test_deltas_take_the_plan_of_a_federation() -> None:
    plan = described(
        "mode=delta", "epochs=7", "delta.learning_rate=0.5", "delta.strategy=TIES()", "delta.schedule=linear"
    ).plan()
    assert (plan.rounds, plan.settings.learning_rate, repr(plan.strategy)[:4], plan.schedule) == (
        7,
        0.5,
        "TIES",
        "linear",
    )


def _texts(told: Mapping[str, object], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _texts(value, (*before, key))
        elif isinstance(value, str | list):
            yield (*before, key)


TEXTS = list(_texts(described(*HASHES).model_dump(mode="json")))


@pytest.mark.parametrize("mode", ["scalar", "delta"])
@pytest.mark.parametrize("keys", TEXTS, ids=".".join)
def test_reading_a_run_imports_nothing_that_it_names(
    keys: tuple[str, ...], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("class Trap: pass")
    monkeypatch.syspath_prepend(tmp_path)
    for text in (
        "trap.Trap()",
        "trap.Trap",
        "ErrorFeedback(trap.Trap())",
        "ClipNorm(trap.Trap(), 1.0)",
        "SGD(lr=trap.Trap())",
        "LoraConfig(target_modules=[trap.Trap()])",
    ):
        told = described(*HASHES, f"mode={mode}").model_dump(mode="json")
        section = told
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = [text, "b"] if isinstance(section[keys[-1]], list) else text
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(told))
        with suppress(ConfigError):
            load_run(tmp_path / "run.yaml").plan()
    assert "trap" not in sys.modules


def test_all_expressions_of_a_run_are_among_its_texts() -> None:
    expressions = {
        ("peft",),
        ("delta", "codec"),
        ("delta", "strategy"),
        ("delta", "outer_optimizer"),
        ("model", "name"),
    }
    assert expressions < set(TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        "LoraConfig(target_modules=['a'], megatron_config={'x': 1}, megatron_core='trap')",
        "PromptTuningConfig(tokenizer_kwargs={'trust_remote_code': True}, prompt_tuning_init='TEXT', "
        "prompt_tuning_init_text='x', tokenizer_name_or_path='x')",
    ],
)
def test_a_run_does_not_make_peft_load_code(text: str) -> None:
    with pytest.raises(ConfigError, match="is not admitted in what others send"):
        described(f"peft={text}")


def test_a_run_bounds_its_members_where_it_says_nothing() -> None:
    plan = described("mode=delta").plan()
    assert (plan.largest_norm, plan.largest_weight) == (10, 10_000)


def test_an_installation_says_where_it_listens_and_whom_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "peer.yaml"
    path.write_text("data: {source: StdlibDocs()}\nlisten: null\npeers: {b: 'host:1'}\n")
    config = load_peer(path, ["peers.c=10.0.0.1:2", "every_s=1"])
    assert config.listen is None and config.peers == {"b": "host:1", "c": "10.0.0.1:2"}
    for setting in ("peers.c=nowhere", "peers.C=host:1", "listen=here", "address=http://x:1/", "every_s=0"):
        with pytest.raises(ConfigError, match=setting.partition("=")[0].partition(".")[0]):
            load_peer(path, [setting])


@pytest.mark.parametrize("address", ["host:1", "a.example.org:65535", "10.0.0.1:80", "[::1]:443"])
def test_what_is_an_address(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:99999999999",
        "::1:443",
        "a b:1",
        "http://a:1",
        "[x]:1x",
        "h:²",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_address(address)


@pytest.mark.parametrize("name", ["", "A", "a_b", "10.0.0.1", "-a", "a/b", "x" * 64])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_name(name)
