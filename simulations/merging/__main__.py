"""Final quality of whole federated runs, strategy by strategy, where sites differ.

`FEDPEFT_DATA=... python -m simulations.merging --jobs 2`: all-MiniLM-L6-v2 in bfloat16 with LoRA (r = 8) on CLINC150's
150 intents, 10 sites that have a domain of 15 intents each, or share by Dirichlet 0.1 or 0.5, 10 rounds of 5 steps; and
a Llama of 260,032 parameters on Shakespeare by 4 speakers. A finished run's row is appended to the cache, and the same
command takes the sweep up where it stopped; `--markdown` prints the table of `docs/choosing-a-strategy.md`.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from simulations import table
from simulations.frontier.sweep import rows_of
from simulations.merging.outcome import Work, outcome
from simulations.merging.rules import RULES, UPDATES, Rule
from simulations.merging.summary import COLUMNS, joined, markdown, summary
from simulations.merging.tasks import TASKS, Task

QUICK = ("a-domain-each", "seen*;ties", "ternary")  # tasks, rules, updates of --quick


def main() -> int:
    """Run what the cache lacks, and print what it has."""
    options = _arguments()
    tasks = [task for task in TASKS.values() if _fits(task.name, options.tasks)]
    for task in list(tasks):
        if missing := task.missing():
            print(f"skipped {task.name}: FEDPEFT_DATA does not name a folder that holds {missing}/")
            tasks.remove(task)
    rules = [rule for rule in RULES if _fits(rule.name, options.rules)]
    updates = [name for name in UPDATES if _fits(name, options.updates)]
    if not tasks:
        return 0
    if not rules or not updates:
        print(f"nothing fits; rules: {'; '.join(r.name for r in RULES)}; updates: {'; '.join(UPDATES)}")
        return 2
    works = _works(tasks, rules, updates, options)
    rows = rows_of(works, options.cache, options.jobs, outcome, only_show=options.show)
    _show(joined(works, rows), options)
    return 0


def _arguments() -> argparse.Namespace:
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", metavar="PATTERNS", help="by name, with semicolons between")
    parser.add_argument("--rules", metavar="PATTERNS", help="by name, as in 'mean;seen*'")
    parser.add_argument("--updates", metavar="PATTERNS", help="ternary or dense; else both")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    parser.add_argument("--no-central", action="store_true", help="leave the centralised run out")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("runs/merging/rows.jsonl"), metavar="PATH")
    parser.add_argument("--show", action="store_true", help="run nothing, print what the cache has")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/choosing-a-strategy.md too")
    options = parser.parse_args()
    defaults = QUICK if options.quick else ("*", "*", "*")
    for name, default in zip(("tasks", "rules", "updates"), defaults, strict=True):
        setattr(options, name, getattr(options, name) or default)
    if options.quick:
        options.seeds = 1
    return options


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split(";"))


def _works(tasks: Sequence[Task], rules: Sequence[Rule], updates: Sequence[str], options: Any) -> list[Work]:
    """A whole seed before the next, so that what is there early can be compared."""
    return [
        Work(task, rule, how, seed, options.quick)
        for seed in range(options.seed, options.seed + options.seeds)
        for how in updates
        for rule in (*([] if options.no_central or how != updates[0] else [None]), *rules)
        for task in tasks
        if rule is None or task.takes(rule)
    ]


def _show(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    if not rows:
        print(f"{options.cache} has none of these runs")
        return
    lines = summary(rows)
    title = "merging: accuracy, or nats a token for speakers; means over seeds"
    table.show(title, lines, options, COLUMNS)
    if options.markdown:
        print(markdown(lines))
    table.save(rows, options)


if __name__ == "__main__":
    sys.exit(main())
