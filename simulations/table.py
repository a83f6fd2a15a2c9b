"""What every bench prints: one table, with the machine, the versions and the seed above it; and its rows as JSON."""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benches have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="short enough for CI")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows as a list of flat objects")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def show(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    columns: Sequence[str],
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print some columns of the rows, and `more` rows made of them."""
    console = Console(width=max(240, Console().width))
    console.print(f"[bold]{title}[/], seed {options.seed}{', --quick' if options.quick else ''}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("fedpeft", "torch", "numba", "numpy", "peft"))
    console.print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}", style="dim")
    table = Table(box=None, header_style="bold", padding=(0, 2), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right", no_wrap=True)
    for row in (*rows, *more):
        table.add_row(*(_text(row.get(column)) for column in columns))
    console.print(table)


def save(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Write the rows where `--json` says, if it does."""
    if options.json:
        options.json.write_text(json.dumps(list(rows), indent=1) + "\n")


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
