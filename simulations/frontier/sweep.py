"""Many runs, each in its process, each done once: a row is on disk before the next run begins."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from fedpeft.durable import append_durably
from simulations.frontier.outcome import outcome

W = TypeVar("W")


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


def sweep(
    works: Sequence[W], path: Path, jobs: int, do: Callable[[W], dict[str, Any]] | None = None
) -> Iterator[tuple[W, dict[str, Any]]]:
    """Do what the cache does not have, and yield each row once the cache has it.

    Args:
        works: what to do, in order.
        path: the cache.
        jobs: processes at a time.
        do: makes the row of a work, in a process of its own; None: `outcome`.
    """
    made: Callable[[Any], dict[str, Any]] = do or outcome
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        append_durably(path, b"\n")  # ends a line that a crash cut short
    # Spawned: threads of torch and numba do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(made, work): work for work in works}
        try:
            for future in as_completed(futures):
                row = future.result()
                append_durably(path, json.dumps(row).encode() + b"\n")
                yield futures[future], row
        finally:
            pool.shutdown(cancel_futures=True)
