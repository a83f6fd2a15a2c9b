"""Learning curves, compared where they have cost the same."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

COSTS = {"sent_bytes": "bytes a peer has sent", "seconds": "seconds of work"}
_LOOK = {"svg.hashsalt": "decentralised", "font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}


class Point(NamedTuple):
    """Where a run stands after an epoch.

    Args:
        sent_bytes: by a peer so far; by a site and to it, where there is a server.
        seconds: of work so far, without measuring.
        accuracy: on the held-out sample.
        loss: on it, in nats.
    """

    sent_bytes: float
    seconds: float
    accuracy: float
    loss: float


def at_equal(cost: str, curves: Mapping[str, Sequence[Point]]) -> Iterator[dict[str, Any]]:
    """Rows of the accuracy that each mode had reached when it had cost so much; None where it had no epoch by then.

    Args:
        cost: a field of `Point`.
        curves: by mode.
    """
    spent = [getattr(point, cost) for curve in curves.values() for point in curve]
    for mark in _marks(min(spent), max(spent)):
        row: dict[str, Any] = {cost: mark}
        for mode, curve in curves.items():
            row[mode] = max((point for point in curve if getattr(point, cost) <= mark), default=None, key=_seconds)
            row[mode] = row[mode] and row[mode].accuracy
        yield row


def draw(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Plot accuracy against each cost; the format is the path's suffix, .svg or .png."""
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = figure.subplots(1, len(COSTS), sharey=True)
        for axes, (cost, title) in zip(panels, COSTS.items(), strict=True):
            for mode, curve in curves.items():
                costs, reached = [getattr(point, cost) for point in curve], [point.accuracy for point in curve]
                axes.plot(costs, reached, label=mode, marker="o", markersize=3, linewidth=1)
            axes.set(xlabel=title, xscale="log")
            axes.grid(linewidth=0.4, alpha=0.5)
        panels[0].set_ylabel("accuracy")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def _marks(least: float, most: float) -> Iterator[int]:
    """1, 3, 10, 30, ... from the least on, and the first that is not below the most."""
    for step in count():
        mark = (1, 3)[step % 2] * 10 ** (step // 2)
        if mark >= least:
            yield mark
        if mark >= most:
            return


def _seconds(point: Point) -> float:
    return point.seconds
