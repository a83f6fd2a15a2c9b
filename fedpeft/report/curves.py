"""What was reached, by round and by byte."""

import math
from collections.abc import Iterable
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fedpeft.report.drawing import INK, MANY_ROUNDS, canvas, card, legend
from fedpeft.report.run import Run
from fedpeft.report.words import TITLES, score, size


def against_rounds(run: Run, key: str) -> str:
    """A score by round, the loss beside that of training."""
    axes, scores = canvas(), run.scores(key)
    train = "training, mean over sites"
    _line(axes, scores, scores.values(), "up", train if key == "train_loss" else "held-out")
    if key == "loss" and run.measured("train_loss"):
        losses = run.scores("train_loss")
        _line(axes, losses, losses.values(), "muted", train, "--")
    last = max(scores)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(-0.03 * last, 1.03 * last)
    _scale(axes, key)
    if key == "loss":
        legend(axes, 2)
    return card(axes, f"{TITLES[key]} by round", _ends(run, key))


def against_bytes(run: Run, key: str) -> str:
    """A score by the bytes of a site, as sent and at what the same rounds cost in fp32."""
    axes = canvas()
    for suffix, colour, label, style in (("", "up", "as sent", "-"), ("_fp32", "muted", "fp32 LoRA", "--")):
        sent = (getattr(row, f"up_bytes{suffix}") + getattr(row, f"down_bytes{suffix}") for row in run.rounds)
        x = [max(total, 1) / run.active for total in accumulate(sent)]
        _line(axes, x, (getattr(row, key) for row in run.rounds), colour, label, style)
    axes.set_xlabel("sent + received by a site")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: size(x, tick=True))
    _scale(axes, key)
    legend(axes, 2)
    note = "The dashed line is the same curve at what these rounds cost in fp32 LoRA, not a second run."
    return card(axes, f"{TITLES[key]} by bytes", _ends(run, key), note)


def _line(axes: Axes, x: Iterable[float], y: Iterable[float | None], colour: str, label: str, style: str = "-") -> None:
    x, values = list(x), [math.nan if value is None else value for value in y]
    marker = "o" if len(x) <= MANY_ROUNDS else ""
    axes.plot(x, values, style, color=INK[colour], label=label, marker=marker, ms=3.4, lw=1.6, solid_capstyle="round")


def _scale(axes: Axes, key: str) -> None:
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %" if key == "accuracy" else f"{y:g}")
    if key == "accuracy":
        axes.set_ylim(0, min(1.03, max(0.05, 1.12 * axes.get_ylim()[1])))


def _ends(run: Run, key: str) -> str:
    values = [value for value in run.scores(key).values() if value is not None]
    return f"from {score(key, values[0])} to {score(key, values[-1])}" if values else "not measured"
