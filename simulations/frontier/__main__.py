"""Final quality against total bytes both ways, over whole federated runs, codec by codec.

`FEDPEFT_DATA=... python -m simulations.frontier --jobs 2`: a pretrained Llama of 260,032 parameters with LoRA (r = 8)
on all linear modules, CLINC150's ten domains over 10 sites (Dirichlet 0.5) and Shakespeare by 4 speakers, three seeds.
A finished run's row is appended to the cache, and the same command takes the sweep up where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from simulations import table
from simulations.frontier.methods import METHODS, Method
from simulations.frontier.outcome import Work, outcome
from simulations.frontier.picture import draw
from simulations.frontier.summary import compared, summary
from simulations.frontier.sweep import rows_of
from simulations.frontier.tasks import TASKS, Task

COLUMNS = ("method", "codec", "broadcast", "seeds", "accuracy", "loss", "lost", "frontier", "up_smaller",
           "up_bytes_per_site", "down_bytes_per_site", "bytes_per_site")  # fmt: skip
QUICK = ("fp32", "ternary-0.2")  # of --quick
NOTES = """bytes: of a site in the whole run, as sent, framing included. up_smaller: fp32's uplink over the row's.
lost: to fp32 of the same seed, in points of accuracy (clinc150) or per cent of nats (shakespeare); less is better.
frontier: * where no row is as good for as few bytes up."""


def main() -> int:
    """Run what the cache lacks, and print what it has."""
    options = _arguments()
    tasks = [task for name, task in TASKS.items() if options.task in (None, name)]
    for task in list(tasks):
        if missing := task.missing():
            print(f"skipped {task.name}: FEDPEFT_DATA does not name a folder that holds {missing}/")
            tasks.remove(task)
    patterns = QUICK if options.quick and not options.methods else (options.methods or "*").split(",")
    methods = [method for method in METHODS if any(fnmatchcase(method.name, pattern) for pattern in patterns)]
    if not tasks:
        return 0
    if not methods:
        print(f"no method fits {options.methods!r}; there are {', '.join(method.name for method in METHODS)}")
        return 2
    works = _works(tasks, methods, options)
    rows = rows_of(works, options.cache, options.jobs, outcome, only_show=options.show)
    _show(tasks, [rows[work.key()] for work in works if work.key() in rows], options)
    return 0


def _arguments() -> argparse.Namespace:
    parser = table.arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", choices=tuple(TASKS), help="one of them; else both")
    parser.add_argument("--methods", metavar="PATTERNS", help="rows by name, as in 'fp32,ternary-*'")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("runs/frontier/rows.jsonl"), metavar="PATH")
    parser.add_argument("--show", action="store_true", help="run nothing, print what the cache has")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the plot, .svg or .png")
    options = parser.parse_args()
    if options.quick:
        options.seeds = 1
    return options


def _works(tasks: Sequence[Task], methods: Sequence[Method], options: argparse.Namespace) -> list[Work]:
    """A whole seed before the next, so that what is there early can be compared."""
    return [
        Work(task.name, method, seed, options.quick)
        for seed in range(options.seed, options.seed + options.seeds)
        for task in tasks
        for method in (None, *methods)
    ]


def _show(tasks: Sequence[Task], rows: Sequence[dict[str, object]], options: argparse.Namespace) -> None:
    federated = compared(rows)
    if not federated:
        print(f"{options.cache} has none of these runs")
        return
    panels = {}
    for task in tasks:
        own = [row for row in federated if row["task"] == task.name]
        if not own:
            continue
        lines = summary(own, task.measure)
        panels[task.name] = (task.measure, lines)
        table.show(
            f"{task.name}, {task.sites} sites; means over seeds {options.seed} to {options.seed + options.seeds - 1}",
            lines,
            options,
            COLUMNS,
        )
        reached = {row["seed"]: row[f"central_{task.measure}"] for row in own}
        print("centralised: " + ", ".join(f"seed {seed} {value:.4f}" for seed, value in reached.items() if value))
    print(NOTES)
    table.save(federated, options)
    if options.plot:
        draw(panels, options.plot)


if __name__ == "__main__":
    sys.exit(main())
