"""The frontier drawn: quality against bytes, a panel for each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulations.frontier.methods import FP32

_LOOK = {"svg.hashsalt": "frontier", "font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}
_MARKS = "osD^v<>Pp*Xhd"
_TITLES = {"accuracy": "test accuracy", "loss": "held-out loss, nats a token"}
_GOALS = ((32, 1.0), (200, 3.0))  # how much smaller than fp32, and what may be lost: points, or per cent of nats


def draw(panels: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]], path: Path) -> None:
    """Write the plot; its format is the path's suffix, .svg or .png.

    Args:
        panels: measure and lines of `summary` for each task, by name.
        path: of the file.
    """
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(6.4 * len(panels), 5.2), layout="constrained")
        families = list(dict.fromkeys(line["family"] for _, lines in panels.values() for line in lines))
        for axes, (task, (measure, lines)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _panel(axes, measure, [line for line in lines if line["seeds"]], families)
            axes.set_title(task)
        handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata, dpi=150)


def _panel(axes: Axes, measure: str, lines: Sequence[Mapping[str, Any]], families: Sequence[str]) -> None:
    colours = matplotlib.colormaps["tab20"]
    for number, family in enumerate(families):
        own = sorted((line for line in lines if line["family"] == family), key=lambda line: line["up_bytes_per_site"])
        if not own:
            continue
        middle = [line[measure] for line in own]
        spread = [
            [line[measure] - line["least"] for line in own],
            [line["most"] - line[measure] for line in own],
        ]
        axes.errorbar(
            [line["up_bytes_per_site"] / 1000 for line in own],
            middle,
            yerr=spread,
            label=family,
            color=colours(number % 20),
            marker=_MARKS[number % len(_MARKS)],
            markersize=5,
            linewidth=1,
            elinewidth=0.6,
        )
    _goals(axes, measure, lines)
    axes.set_xscale("log")
    axes.set_xlabel("kB a site sends in the whole run")
    axes.set_ylabel(_TITLES[measure])
    axes.grid(linewidth=0.4, alpha=0.5)


def _goals(axes: Axes, measure: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """What was aimed at: corners that a method's point should lie beyond."""
    fp32 = next((line for line in lines if line["method"] == FP32.name), None)
    if fp32 is None:
        return
    for smaller, lost in _GOALS:
        x = fp32["up_bytes_per_site"] / smaller / 1000
        y = fp32[measure] - lost / 100 if measure == "accuracy" else fp32[measure] * (1 + lost / 100)
        axes.plot([x], [y], marker="+", markersize=14, color="black", linestyle="none")
        axes.annotate(f"goal at 1/{smaller}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=7)
