"""Rows of all runs as a table: a line for each rule and share of dishonest sites, a column for each attack."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from simulations.attacks import ATTACKS
from simulations.robustness.outcome import NONE

COLUMNS = ("rule", "dishonest", "seeds", NONE, *ATTACKS, "worst")


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean accuracy over seeds; `worst` is the least of a line's attacks, "failed" where a run could not go on.

    What a rule costs where nobody is dishonest stands in the line of 0.
    """
    lines = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        for share in sorted({row["dishonest"] for row in rows if row["rule"] == rule}):
            same = [row for row in rows if (row["rule"], row["dishonest"]) == (rule, share)]
            lines.append(_line(rule, share, same))
    return lines


def _line(rule: str, share: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    line: dict[str, Any] = {"rule": rule, "dishonest": share, "seeds": len({row["seed"] for row in rows})}
    for attack in (NONE, *ATTACKS):
        runs = [row for row in rows if row["attack"] == attack]
        if runs:
            failed = any("accuracy" not in row for row in runs)
            line[attack] = "failed" if failed else mean(row["accuracy"] for row in runs)
    under = [line[attack] for attack in ATTACKS if attack in line]
    if under:
        line["worst"] = "failed" if "failed" in under else min(under)
    return line


def markdown(lines: Sequence[Mapping[str, Any]], sites: int) -> str:
    """The table as it stands in `docs/robustness.md`: per cent, and a dash for what was not run."""
    head = ["rule", "dishonest", *COLUMNS[3:]]
    text = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * (len(head) - 2)}"]
    for line in lines:
        cells = [f"`{line['rule']}`", f"{100 * line['dishonest'] / sites:.0f} %"]
        cells += [_cell(line.get(column)) for column in COLUMNS[3:]]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{100 * value:.1f}"
