"""Final accuracy of real federated runs under attack, rule by rule.

`FEDPEFT_DATA=... python -m simulations.robustness --jobs 2`: a pretrained Llama of 260,032 parameters with LoRA (r = 8)
on all linear modules, CLINC150's ten domains over 10 sites (Dirichlet 1.0), 12 rounds of 4 steps; 0, 1, 2 and 3 of
the sites dishonest. A finished run's row is appended to the cache, and the same command takes the sweep up where it
stopped; `--markdown` prints the table of `docs/robustness.md`.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from simulations import table
from simulations.attacks import ATTACKS
from simulations.frontier.sweep import rows_of
from simulations.robustness.outcome import NONE, TASK, Work, outcome
from simulations.robustness.rules import RULES, Rule
from simulations.robustness.summary import COLUMNS, markdown, summary

QUICK = ("mean,multi-krum", "noise", "0,3")  # rules, attacks, numbers of --quick


def main() -> int:
    """Run what the cache lacks, and print what it has."""
    options = _arguments()
    if missing := TASK.missing():
        print(f"skipped: FEDPEFT_DATA does not name a folder that holds {missing}/")
        return 0
    rules = [rule for rule in RULES if _fits(rule.name, options.rules)]
    attacks = [attack for attack in ATTACKS if _fits(attack, options.attacks)]
    if not rules or not attacks:
        print(f"nothing fits; rules: {', '.join(r.name for r in RULES)}; attacks: {', '.join(ATTACKS)}")
        return 2
    works = _works(rules, attacks, options)
    rows = rows_of(works, options.cache, options.jobs, outcome, only_show=options.show)
    _show([rows[work.key()] for work in works if work.key() in rows], options)
    return 0


def _arguments() -> argparse.Namespace:
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rules", metavar="PATTERNS", help="by name, as in 'mean,*krum'")
    parser.add_argument("--attacks", metavar="PATTERNS", help="by name, as in 'noise,alie'")
    parser.add_argument("--dishonest", metavar="NUMBERS", help="sites that are, as in '0,3'; else 0,1,2,3")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("runs/robustness/rows.jsonl"), metavar="PATH")
    parser.add_argument("--show", action="store_true", help="run nothing, print what the cache has")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/robustness.md too")
    options = parser.parse_args()
    rules, attacks, numbers = QUICK if options.quick else ("*", "*", "0,1,2,3")
    options.rules, options.attacks = options.rules or rules, options.attacks or attacks
    try:
        options.dishonest = [int(number) for number in (options.dishonest or numbers).split(",")]
    except ValueError:
        parser.error(f"--dishonest: expected numbers with commas between, got {options.dishonest!r}")
    if not all(0 <= number < TASK.sites for number in options.dishonest):
        parser.error(f"--dishonest: expected numbers below the {TASK.sites} sites, got {options.dishonest}")
    return options


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _works(rules: Sequence[Rule], attacks: Sequence[str], options: argparse.Namespace) -> list[Work]:
    """A whole seed before the next, so that what is there early can be compared."""
    return [
        Work(rule, attack, dishonest, seed, options.quick)
        for seed in range(options.seed, options.seed + options.seeds)
        for dishonest in sorted(set(options.dishonest))
        for rule in rules
        for attack in (attacks if dishonest else [NONE])
    ]


def _show(rows: Sequence[dict[str, object]], options: argparse.Namespace) -> None:
    if not rows:
        print(f"{options.cache} has none of these runs")
        return
    lines = summary(rows)
    title = f"{TASK.name}, accuracy, some of {TASK.sites} sites dishonest; means over {options.seeds} seeds"
    table.show(title, lines, options, COLUMNS)
    if options.markdown:
        print(markdown(lines, TASK.sites))
    table.save(rows, options)


if __name__ == "__main__":
    sys.exit(main())
