"""The measurements without a server: what they say is what was sent, learnt and agreed on."""

import pytest

from simulations.bench_peers import loopback, scalars, swarms
from simulations.decentralised import curves, modes
from simulations.decentralised.curves import Point
from tests import tiny


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    known = tiny.experiment(tmp_path_factory.mktemp("tiny"))
    model, data, training = known["model"], known["data"], known["training"]
    assert isinstance(model, dict) and isinstance(data, dict) and isinstance(training, dict)
    sections = {"model": model, "data": data, "training": training}
    nested = [f"{name}.{key}={value}" for name, section in sections.items() for key, value in section.items()]
    return [*nested, "rounds=2", "sites=3", f"peft={known['peft']}"]


@pytest.mark.parametrize("mode", ["central", "server", *modes.PEERS])
def test_a_mode_is_measured(common, mode):
    row = modes.outcome(mode, common, brief=True)
    assert {"accuracy", "loss", "bytes_per_peer", "wall_s"} <= row.keys()
    assert 0 <= row["accuracy"] <= 1
    assert row["wall_s"] > 0
    assert (row["bytes_per_peer"] > 0) == (mode != "central")
    if mode.startswith(("delta", "scalar")):
        assert row["agree"] == 3
    if mode.startswith("gossip"):
        assert row["distance"] > 0


def test_curves_are_compared_where_they_cost_the_same(tmp_path):
    found = {
        "dear": [Point(400, 1.0, 0.2, 3.0), Point(800, 2.0, 0.6, 1.0)],
        "cheap": [Point(5, 4.0, 0.1, 3.1), Point(10, 8.0, 0.3, 2.0)],
    }
    by_bytes = {row["sent_bytes"]: (row["dear"], row["cheap"]) for row in curves.at_equal("sent_bytes", found)}
    assert by_bytes == {10: (None, 0.3), 30: (None, 0.3), 100: (None, 0.3), 300: (None, 0.3), 1000: (0.6, 0.3)}
    by_time = {row["seconds"]: (row["dear"], row["cheap"]) for row in curves.at_equal("seconds", found)}
    assert by_time == {1: (0.2, None), 3: (0.6, None), 10: (0.6, 0.3)}
    curves.draw(found, tmp_path / "curves.svg")
    assert "dear" in (tmp_path / "curves.svg").read_text()


def test_scalars_are_fewer_bytes_than_deltas(common):
    """Of one epoch, and so without what is sent again; the tiny model's deltas are small, the demo's are not."""
    short = [*common, "rounds=1", "peft=LoraConfig(r=16, lora_alpha=16, target_modules=['query', 'value'])"]
    delta, scalar = (modes.outcome(mode, short, brief=True) for mode in ("delta", "scalar, spsa"))
    assert scalar["bytes_per_peer"] < delta["bytes_per_peer"]


def test_a_scalar_costs_what_its_segment_weighs():
    ledger = scalars.ledger(1 << 12)
    found = loopback.bytes_per_scalar(ledger, 8)
    assert found.keys() == loopback.WAYS.keys()
    least = 1 + 64 / scalars.PER_SEGMENT
    assert least < found["pushed by fours"] < found["pushed one by one"] < 3


def test_what_a_newcomer_needs_is_bounded_whatever_the_history():
    ledger = scalars.ledger(1 << 12)
    short, long = (swarms.join(ledger, 4, history, seed=0) for history in (1, 6))
    assert long["join_bytes"] < 3 * short["join_bytes"]
    assert long["join_bytes"] < 8 * scalars.DIRECTIONS + 4096
    assert long["bytes_per_scalar_and_peer"] > 1


def test_rounds_grow_with_the_logarithm_of_the_peers():
    ledger = scalars.ledger(1 << 12)
    few, many = (swarms.rounds_to_agree(ledger, peers, seed=0) for peers in (4, 32))
    assert 1 <= few <= many <= few + 6


def test_replay_is_by_one_transform():
    found = scalars.replay_s(1 << 14, 1024, 2)
    assert found.keys() == {"replay_s", "one_by_one_s"}
    assert all(seconds > 0 for seconds in found.values())
