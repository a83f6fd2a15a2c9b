"""Many runs, each in its process, each done once: a row is on disk before the next run begins."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from fedpeft.durable import append_durably


class Work(Protocol):
    """One run of a sweep."""

    @property
    def name(self) -> str:
        """For who waits."""
        ...

    def key(self) -> str:
        """What the cache knows it by."""
        ...


W = TypeVar("W", bound=Work)


def cached(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a cache by their key; a line that was cut short by a crash counts as not there.

    Args:
        path: a JSON-lines file, which need not exist.
    """
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def rows_of(
    works: Sequence[W], path: Path, jobs: int, do: Callable[[W], dict[str, Any]], *, only_show: bool = False
) -> dict[str, dict[str, Any]]:
    """The rows of a cache by key, after what it lacked was done; each new one is said as it comes.

    Args:
        works: what to do, in order.
        path: the cache.
        jobs: processes at a time.
        do: makes the row of a work, in a process of its own.
        only_show: do nothing.
    """
    rows = cached(path)
    if only_show:
        return rows
    left = list({work.key(): work for work in works if work.key() not in rows}.values())
    progress = Console(stderr=True)
    for done, (work, row) in enumerate(sweep(left, path, jobs, do), 1):
        said = row.get("failure") or f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.4f}"
        progress.print(f"{done}/{len(left)} {work.name}: {said}, {row['wall_s']:.0f} s", style="dim")
        rows[row["key"]] = row
    return rows


def sweep(
    works: Sequence[W], path: Path, jobs: int, do: Callable[[W], dict[str, Any]]
) -> Iterator[tuple[W, dict[str, Any]]]:
    """Do all of it, and yield each row once the cache has it.

    Args:
        works: what to do, in order.
        path: the cache.
        jobs: processes at a time.
        do: makes the row of a work, in a process of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        append_durably(path, b"\n")  # ends a line that a crash cut short
    # Spawned: threads of torch and numba do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(do, work): work for work in works}
        try:
            for future in as_completed(futures):
                row = future.result()
                append_durably(path, json.dumps(row).encode() + b"\n")
                yield futures[future], row
        finally:
            pool.shutdown(cancel_futures=True)
