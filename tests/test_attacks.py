"""What the attacks of `simulations.attacks` forge, by their definitions, and that it arrives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpeft import strategies
from fedpeft.config import validate
from fedpeft.random import Purpose, Stream
from fedpeft.simulation import Simulation
from fedpeft.strategies import Context, Update
from fedpeft.training import Encoded
from simulations import attacks
from simulations.attacks import ALIE, ATTACKS, Attack, FreeRider, LabelFlip, MinMax, Noise, RangeCheat, Scene, SignFlip
from simulations.dishonest import attacked
from simulations.robustness.outcome import NONE, Work
from simulations.robustness.rules import RULES, TrustsFirst
from simulations.robustness.summary import markdown, summary
from tests import tiny
from tests.strategies.examples import SPACE, updates


def scene(sites: int = 7, dishonest: int = 3) -> Scene:
    deltas = [u.delta for u in updates(sites + 2)]
    stream = Stream(1, Purpose.DATA, 4, 2)
    return Scene(deltas[0], tuple(deltas[1 : sites + 1]), deltas[-1], dishonest, stream)


def honest(given: Scene) -> np.ndarray:
    return np.stack([x.double().numpy() for x in given.others])


def test_every_attack_sends_a_float32_delta_and_the_same_again() -> None:
    for attack in ATTACKS.values():
        one, other = attack.delta(scene()), attack.delta(scene())
        assert one.dtype == torch.float32 and one.shape == scene().own.shape and torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_labels_are_called_by_the_opposite_name() -> None:
    data = Encoded(((1,), (2,), (3,)), (0, 1, 3), (0, 1, 3))
    flipped = LabelFlip().data(data, 4)
    assert (flipped.targets, flipped.labels, flipped.tokens) == ((3, 2, 0), (0, 2, 3), data.tokens)
    assert LabelFlip().data(flipped, 4).targets == data.targets
    assert torch.equal(LabelFlip().delta(scene()), scene().own)
    assert all(attack.data(data, 4) is data for attack in ATTACKS.values() if not isinstance(attack, LabelFlip))


def test_a_sign_is_flipped() -> None:
    assert torch.equal(SignFlip(4.0).delta(scene()), -4 * scene().own)


def test_noise_has_its_length_and_no_direction() -> None:
    forged = Noise(10.0).delta(scene())
    assert float(forged.norm() / scene().own.norm()) == pytest.approx(10, rel=1e-5)
    assert abs(torch.cosine_similarity(forged, scene().own, dim=0)) < 0.4


def test_alie_is_the_mean_less_z_deviations() -> None:
    x = honest(scene())
    assert np.allclose(ALIE(1.5).delta(scene()).numpy(), x.mean(0) - 1.5 * x.std(0), atol=1e-5)
    z = attacks.most_hidden(10, 3)
    assert np.allclose(ALIE(0.0).delta(scene()).numpy(), x.mean(0) - z * x.std(0), atol=1e-5)


def test_the_most_hidden_z_is_the_papers() -> None:
    """n = 50, f = 24: 26 - 24 = 2 supporters, the quantile of 24 / 26; n = 10, f = 3: 3, of 4 / 7."""
    assert attacks.most_hidden(50, 24) == pytest.approx(1.4261, abs=1e-3)
    assert attacks.most_hidden(10, 3) == pytest.approx(0.1800, abs=1e-3)


def test_min_max_goes_as_far_as_it_may_and_no_farther() -> None:
    x, forged = honest(scene()), MinMax().delta(scene()).double().numpy()
    reach = max(np.linalg.norm(a - b) for a in x for b in x)
    assert np.linalg.norm(x - forged, axis=1).max() == pytest.approx(reach, rel=1e-5)
    gamma = (x.mean(0) - forged) / x.std(0)
    assert np.allclose(gamma, gamma[0], rtol=1e-3) and gamma[0] > 0
    same = Scene(scene().own, (scene().own,) * 3, scene().moved, 1, scene().stream)
    assert torch.allclose(MinMax().delta(same), scene().own)


def test_a_range_cheat_leaves_the_range_in_few_coordinates() -> None:
    given, forged = scene(), RangeCheat(0.05, 100.0).delta(scene())
    changed = (forged != given.own).nonzero().flatten()
    most = max(float(x.abs().max()) for x in (given.own, *given.others))
    assert len(changed) == round(0.05 * SPACE.numel)
    assert torch.allclose(forged[changed], -100 * most * given.own[changed].sign())
    assert given.own[changed].abs().min() >= given.own[forged == given.own].abs().max()


def test_a_free_rider_repeats_the_last_movement() -> None:
    given = scene()
    assert torch.equal(FreeRider(0.0).delta(given), given.moved)
    assert float((FreeRider(0.1).delta(given) - given.moved).norm() / given.moved.norm()) == pytest.approx(0.1)
    still = Scene(given.own, given.others, torch.zeros_like(given.own), 1, given.stream)
    assert not FreeRider(0.1).delta(still).any()


def run(folder: Path, name: str, attack: Attack | None, **more: object) -> tuple[list[dict[str, Any]], torch.Tensor]:
    experiment = validate(tiny.experiment(folder, **{"sites": 5, "rounds": 2, "quorum": 0.5, **more}))
    connect = attacked(experiment, attack, 1) if attack else None
    with Simulation(experiment, folder / name, connect=connect) as simulation:
        return list(simulation.run()), simulation.server.state.vector.clone()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return run(tmp_path_factory.mktemp("plain"), "run", None)[1]


def test_an_attack_that_forges_nothing_is_the_plain_simulation(tmp_path: Path, plain: torch.Tensor) -> None:
    class Nothing(Attack):
        keeps = True

    assert torch.equal(run(tmp_path, "run", Nothing())[1], plain)


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_what_is_forged_goes_through_the_codec_and_counts(attack: str, tmp_path: Path, plain: torch.Tensor) -> None:
    rows, vector = run(tmp_path, "run", ATTACKS[attack])
    assert [row["counted"] for row in rows] == [5, 5]
    assert not torch.equal(vector, plain)


def test_one_site_moves_a_mean_and_not_a_median(tmp_path: Path) -> None:
    far = {}
    for rule in ("Mean()", "Median()", "Krum(1)"):
        more = {"strategy": rule, "codec": "Identity()", "server_optimizer": "SGD(lr=1.0)", "rounds": 1}
        calm, moved = (run(tmp_path, f"{rule}-{attack}", attack, **more)[1] for attack in (None, Noise(100.0)))
        far[rule] = float((moved - calm).norm())
    assert far["Mean()"] > 10 * max(far["Median()"], far["Krum(1)"])


def test_an_update_beyond_the_cap_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, "capped", Noise(1000.0), codec="Identity()", largest_norm=10.0)
    assert [(row["counted"], row["refused"]) for row in rows] == [(4, 1), (4, 1)]


def test_who_trusts_the_first_merges_the_others() -> None:
    cohort = updates(6)
    expected = strategies.FLTrust().merge(cohort[1:], Context(SPACE, told={"root": cohort[0].delta}))
    assert torch.equal(TrustsFirst().merge(cohort, Context(SPACE)), expected)
    with pytest.raises(ValueError, match="merges at least 2 updates, got 1"):
        TrustsFirst().merge(cohort[:1], Context(SPACE))


def test_every_rule_merges_what_ten_sites_send() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    cohort = [Update(u.delta) for u in updates(10)]
    for rule in RULES:
        assert torch.isfinite(strategies.parse(rule.strategy, imports=True).merge(cohort, Context(SPACE))).all()


def test_a_run_is_known_by_what_decides_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path))
    works = [
        Work(rule, attack, f, seed, False) for rule in RULES for attack in ATTACKS for f in (1, 3) for seed in (0, 1)
    ]
    works += [Work(rule, NONE, 0, seed, False) for rule in RULES for seed in (0, 1)]
    keys = [work.key() for work in works]
    assert len(set(keys)) == len(keys)
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path / "elsewhere"))
    assert [work.key() for work in works] == keys


def test_the_table_has_a_line_for_each_rule_and_share() -> None:
    rows = [
        {"rule": "mean", "dishonest": 0, "attack": NONE, "seed": 0, "accuracy": 0.5},
        {"rule": "mean", "dishonest": 0, "attack": NONE, "seed": 1, "accuracy": 0.7},
        {"rule": "mean", "dishonest": 3, "attack": "noise", "seed": 0, "accuracy": 0.25},
        {"rule": "mean", "dishonest": 3, "attack": "alie", "seed": 0, "accuracy": 0.125},
        {"rule": "krum", "dishonest": 3, "attack": "noise", "seed": 0, "failure": "diverged"},
    ]
    lines = summary(json.loads(json.dumps(rows)))
    assert [(line["rule"], line["dishonest"], line["seeds"]) for line in lines] == [
        ("mean", 0, 2), ("mean", 3, 1), ("krum", 3, 1),
    ]  # fmt: skip
    assert lines[0][NONE] == pytest.approx(0.6) and "worst" not in lines[0]
    assert (lines[1]["worst"], lines[2]["worst"]) == (0.125, "failed")
    text = markdown(lines, 10).splitlines()
    assert text[2].startswith("| `mean` | 0 % | 60.0 | - |") and text[3].endswith("| 12.5 |")
    assert len({line.count("|") for line in text}) == 1
