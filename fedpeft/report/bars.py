"""What it cost: bytes of sites, time of rounds and stages."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedpeft.report.drawing import INK, MANY_ROUNDS, canvas, card, legend
from fedpeft.report.run import STAGES, Run
from fedpeft.report.words import duration, many, short, size

MANY_SITES = 20


def bytes_of_sites(run: Run, way: str) -> str:
    """Bytes `up` or `down` by site, named up to `MANY_SITES`, else from the most to the least."""
    totals = {name: sum(getattr(t, f"{way}_bytes") for t in rounds) for name, rounds in run.sites.items()}
    values = sorted(totals.values(), reverse=True)
    if len(totals) > MANY_SITES:
        axes, edges = canvas(), [i + 0.5 for i in range(len(values) + 1)]
        axes.stairs(values, edges, fill=True, color=INK[way], lw=0)
        axes.set_xlabel("site, from the most bytes to the least")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.1 * max(*values, 1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda y, _: size(y, tick=True))
    else:
        axes = canvas(0.4 + 0.22 * max(len(totals), 5))
        _bars(axes, totals, [INK[way]] * len(totals), size)
    title = {"up": "Sent by each site", "down": "Received by each site"}[way]
    return card(axes, title, f"{size(values[-1])} to {size(values[0])} over {many(len(totals), 'site')}")


def time_of_rounds(run: Run) -> str:
    """Seconds by round, stage on stage."""
    axes, x, base = canvas(), [row.round for row in run.rounds], [0.0] * len(run.rounds)
    for stage in STAGES:
        seconds = [getattr(row, f"{stage}_s") for row in run.rounds]
        axes.bar(x, seconds, 0.68 if len(x) <= MANY_ROUNDS else 1.0, base, color=INK[stage], label=stage)
        base = [low + more for low, more in zip(base, seconds, strict=True)]
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(x[0] - 0.6, x[-1] + 0.6)
    axes.set_ylim(0, 1.05 * max(*base, 1e-3))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g} s")
    legend(axes, len(STAGES), 0.8)
    return card(axes, "Time by round", f"{duration(run.total('round_s'))} in all")


def time_of_stages(run: Run) -> str:
    """Seconds by stage, over all rounds."""
    totals = {stage: run.total(f"{stage}_s") for stage in STAGES}
    whole = sum(totals.values()) or 1.0

    def label(seconds: float) -> str:
        share = 100 * seconds / whole
        return f"{duration(seconds)}, " + (f"{share:.1f} %" if share >= 0.05 or not seconds else "< 0.1 %")

    axes = canvas()
    _bars(axes, totals, [INK[stage] for stage in STAGES], label)
    return card(axes, "Time by stage", "; ".join(f"{stage} {label(seconds)}" for stage, seconds in totals.items()))


def _bars(axes: Axes, values: Mapping[str, float], colours: list[str], label: Callable[[float], str]) -> None:
    """One bar a line, its name on the left and its value at the end."""
    y, largest = range(len(values)), max(*values.values(), 1e-9)
    axes.barh(y, list(values.values()), 0.68, color=colours)
    axes.set_yticks(y, [short(name) for name in values], parse_math=False)
    axes.set_ylim(max(len(values), 3) - 0.4, -0.6)
    axes.set_xlim(0, 1.34 * largest)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    for i, value in enumerate(values.values()):
        axes.text(value + 0.02 * largest, i, label(value), va="center", color=INK["ink"])
