"""What the sweep over strategies runs and shows, without running it."""

from pathlib import Path

import pytest

from simulations.merging.outcome import Work
from simulations.merging.rules import RULES, UPDATES
from simulations.merging.summary import COLUMNS, joined, markdown, summary
from simulations.merging.tasks import TASKS


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path))


def works(seed: int = 0) -> list[Work]:
    return [
        Work(task, rule, how, seed, quick=False)
        for task in TASKS.values()
        for rule in RULES
        for how in UPDATES
        if task.takes(rule)
    ]


def test_every_rule_has_a_plan_with_every_task_and_a_key_of_its_own() -> None:
    keys = {work.key() for work in works()} | {work.key() for work in works(1)}
    assert len(keys) == 2 * len(works())
    for work in works():
        plan = work.experiment().plan()
        assert plan.needed(work.task.sites) >= plan.strategy.least


def test_the_centralised_run_is_one_however_data_are_spread() -> None:
    alone = {Work(task, None, "ternary", 0, quick=False).key() for task in TASKS.values()}
    assert len(alone) == len({task.settings["data"]["source"] for task in TASKS.values()}) == 2


def test_means_over_seeds_failures_and_what_one_place_reaches_are_shown() -> None:
    rule, other = (rule for rule in RULES if rule.name in ("mean", "ties"))
    rows, done = {}, []
    for task in TASKS.values():
        for seed, value in ((0, 0.5), (1, 0.7)):
            for each in (rule, other):
                work = Work(task, each, "ternary", seed, quick=False)
                failed = each is other and task.name == "speakers"
                row = {"key": work.key(), "task": task.name, "rule": each.name, "updates": "ternary", "seed": seed}
                rows[work.key()] = row | ({"failure": "why"} if failed else {task.measure: value})
                rows[work.key()] |= {"up_ratio_to_fp32": 0.05}
                done.append(work)
    central = Work(TASKS["a-domain-each"], None, "ternary", 0, quick=False)
    rows[central.key()] = {"key": central.key(), "accuracy": 0.9, "loss": 0.4}
    first, second, last = summary(joined([central, *done], rows))
    assert first["a-domain-each"] == pytest.approx(0.6) and first["speakers"] == pytest.approx(0.6)
    assert second["speakers"] == "failed" and first["seeds"] == 2 and first["up_smaller"] == pytest.approx(20)
    assert last["rule"] == "in one place" and last["a-domain-each"] == 0.9
    assert set(COLUMNS) >= set(first)
    text = markdown([first, second, last])
    assert "| mean | `Mean()` | ternary | 60.0 % | 60.0 % | 60.0 % | 0.600 | 2 | 20 |" in text and "| failed |" in text
    assert joined(done, {}) == []
