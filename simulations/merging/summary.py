"""Rows of single runs, and what is shown of them: a line for each rule, a column for each task."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from simulations.merging.outcome import Work
from simulations.merging.rules import RULES, Rule
from simulations.merging.tasks import TASKS

COLUMNS = ("rule", "updates", *TASKS, "seeds", "up_smaller")


def joined(works: Sequence[Work], rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of federated runs, each with what the same data in one place reached."""
    reached = {
        (work.task.name, work.seed): rows[work.key()] for work in works if work.rule is None and work.key() in rows
    }
    found = []
    for work in works:
        if work.rule and work.key() in rows:
            central = reached.get((work.task.name, work.seed), {})
            more = {f"central_{measure}": central.get(measure) for measure in ("accuracy", "loss")}
            found.append({**rows[work.key()], **more})
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each rule and kind of updates, means over seeds; a failed run is said to be one."""
    lines = []
    for rule, updates in dict.fromkeys((row["rule"], row["updates"]) for row in rows):
        own = [row for row in rows if (row["rule"], row["updates"]) == (rule, updates)]
        line: dict[str, Any] = {"rule": rule, "updates": updates}
        for name, task in TASKS.items():
            done = [row for row in own if row["task"] == name]
            failed = [row for row in done if task.measure not in row]
            line[name] = "failed" if failed else mean(row[task.measure] for row in done) if done else None
        line["seeds"] = max(sum(row["task"] == name for row in own) for name in TASKS)
        ratios = [row["up_ratio_to_fp32"] for row in own if row.get("up_ratio_to_fp32")]
        line["up_smaller"] = 1 / mean(ratios) if ratios else None
        lines.append(line)
    central = {
        name: mean(values)
        for name, task in TASKS.items()
        if (values := [v for r in rows if r["task"] == name and (v := r.get(f"central_{task.measure}")) is not None])
    }
    return [*lines, {"rule": "in one place", "updates": "", **central}] if central else lines


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table for a page, with what each rule needs."""
    tasks = {name: task for name, task in TASKS.items() if any(line.get(name) is not None for line in lines)}
    heads = ["rule", "strategy, and what goes with it", "updates", *tasks, "seeds", "sent, fp32 /"]
    needs, shown = {rule.name: _needs(rule) for rule in RULES}, [heads, ["---"] * len(heads)]
    for line in lines:
        cells = [str(line["rule"]), needs.get(line["rule"], ""), str(line["updates"])]
        for name, task in tasks.items():
            value = line.get(name)
            cells.append(
                "" if value is None else value if isinstance(value, str) else
                f"{100 * value:.1f} %" if task.measure == "accuracy" else f"{value:.3f}"
            )  # fmt: skip
        smaller = line.get("up_smaller")
        shown.append([*cells, str(line.get("seeds", "")), f"{smaller:.0f}" if smaller else ""])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)


def _needs(rule: Rule) -> str:
    beside = [rule.codec.format("codec")] if rule.codec != "{}" else []
    beside += [rule.server_optimizer] if rule.server_optimizer != "SGD(lr=1.0)" else []
    beside += [f"{name}: {value}" for name, value in rule.training.items()]
    return ", ".join(f"`{word}`" for word in (rule.strategy, *beside))
