"""A run as one self-contained HTML page: what was reached, what it cost, in which units."""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any, TypeVar

import matplotlib
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from fedpeft.errors import JournalError
from fedpeft.federation.journal import write_durably

Model = TypeVar("Model", bound=BaseModel)
Score = Annotated[float | None, AfterValidator(lambda x: x if x is not None and math.isfinite(x) else None)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
STAGES = ("train", "encode", "fold", "evaluate", "other")
COLOURS = ("", "ink", "muted", "line", "up", "down", *STAGES)  # drawn as #000001, ...; shown as CSS variables
MANY_SITES, MANY_ROUNDS = 20, 40
DASH = "–"


class _Traffic(BaseModel):
    up_bytes: NonNegativeInt
    down_bytes: NonNegativeInt


class _Round(_Traffic):
    round: PositiveInt
    loss: Score
    accuracy: Score
    train_loss: Score
    learning_rate: float
    up_bytes_fp32: NonNegativeInt
    down_bytes_fp32: NonNegativeInt
    counted: NonNegativeInt
    refused: NonNegativeInt
    train_s: Seconds
    encode_s: Seconds
    fold_s: Seconds
    evaluate_s: Seconds
    round_s: Seconds
    sites: dict[str, _Traffic]

    @property
    def other_s(self) -> float:
        return max(0.0, self.round_s - self.train_s - self.encode_s - self.fold_s - self.evaluate_s)


class _Site(BaseModel):
    examples: NonNegativeInt
    labels: NonNegativeInt


class _Model(BaseModel):
    name: str


class _Experiment(BaseModel):
    rounds: PositiveInt
    model: _Model
    codec: str
    broadcast: str
    strategy: str


class _Facts(BaseModel):
    name: str
    version: str
    experiment: _Experiment
    numel: NonNegativeInt
    labels: NonNegativeInt
    test_examples: NonNegativeInt
    sites: dict[str, _Site]
    before: dict[str, Score]


@dataclass(frozen=True)
class _Run:
    facts: _Facts
    rounds: list[_Round]
    config: str
    configured_rounds: object

    @cached_property
    def sites(self) -> dict[str, list[_Traffic]]:
        """What each site sent and received in the rounds that counted it."""
        names = dict.fromkeys(self.facts.sites) | dict.fromkeys(name for row in self.rounds for name in row.sites)
        return {name: [row.sites[name] for row in self.rounds if name in row.sites] for name in names}

    @property
    def active(self) -> int:
        return max(1, sum(bool(rounds) for rounds in self.sites.values()))

    def total(self, key: str) -> float:
        return float(sum(getattr(row, key) for row in self.rounds))


def write(folder: Path) -> Path:
    """Write a run's `report.html`, whole or not at all, and return its path; the same run gives the same bytes.

    Args:
        folder: of the run, with `metrics.jsonl`, `facts.json` and `config.yaml` in it; the run need not be finished.

    Raises:
        JournalError: one of the three is missing or damaged; the message names it.
    """
    page = folder / "report.html"
    write_durably(page, _page(_read(folder)).encode())
    return page


def _read(folder: Path) -> _Run:
    metrics, facts, config = (_text(folder / name) for name in ("metrics.jsonl", "facts.json", "config.yaml"))
    rounds = [
        _parse(_Round, line, f"{folder / 'metrics.jsonl'}, line {number}")
        for number, line in enumerate(metrics.splitlines(), 1)
    ]
    try:
        configured = yaml.safe_load(config)["rounds"]
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise JournalError(f"{folder / 'config.yaml'}: expected the YAML of an experiment: {error!r}") from None
    return _Run(_parse(_Facts, facts, str(folder / "facts.json")), rounds, config, configured)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(f"{path}: expected a file that `fedpeft simulate` wrote: {error}") from None


def _parse(kind: type[Model], text: str, where: str) -> Model:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = "".join(f"{part}: " for part in problem["loc"])
        raise JournalError(f"{where}: {key}{problem['msg']}; resume the run to write the file anew") from None


# The page.


def _page(run: _Run) -> str:
    facts, plan, done = run.facts, run.facts.experiment, len(run.rounds)
    own = "each on its own" if len(run.sites) > 1 else "on its own"
    sentence = (
        f"{_many(len(run.sites), 'site')} fine-tuned one adapter of {plan.model.name} ({facts.numel:,} trainable "
        f"parameters) over {_many(done, 'round')}, {own} examples, and sent only updates of it."
    )
    how = {"updates": plan.codec, "broadcast": plan.broadcast, "merged by": plan.strategy}
    notices = []
    if done < plan.rounds:
        notices.append(f"This run is not finished: {done} of {plan.rounds} planned rounds are done.")
    if done and not _curves(run, "accuracy"):
        notices.append("Accuracy was not measured: nothing was evaluated on held-out examples, or only the loss.")
    changed = (
        f"<p class=note>The run was taken up with <code>rounds: {plan.rounds}</code>.</p>"
        if run.configured_rounds != plan.rounds
        else ""
    )
    return Template(_PAGE).substitute(
        style=_STYLE,
        name=escape(facts.name),
        sentence=escape(sentence),
        how="".join(f"<span>{key} <code>{escape(text)}</code></span> " for key, text in how.items()),
        notices="".join(f"<p class=notice role=note>{escape(text)}</p>\n" for text in notices),
        tiles="\n".join(_tiles(run)),
        figures=_figures(run) if done else "",
        sites=_sites_table(run),
        rounds=_rounds_table(run),
        config=changed + f"<pre tabindex=0>{escape(run.config)}</pre>",
        version=escape(facts.version),
    )


def _tiles(run: _Run) -> Iterable[str]:
    facts, plan, done = run.facts, run.facts.experiment, len(run.rounds)
    score = next((key for key in ("accuracy", "loss", "train_loss") if _curves(run, key)), "accuracy")
    (values, shown) = [row for row in _series(run, score)[1] if row is not None], _FORMATS[score]
    before = f"{shown(values[0])} <i>→</i> " if len(values) > 1 else ""
    noise = ""
    if score == "accuracy" and values and facts.test_examples:
        error = math.sqrt(max(0.0, values[-1] * (1 - values[-1])) / facts.test_examples)
        noise = f", ±\u00a0{100 * error:.1f}\u00a0points"
    where = f"on {facts.test_examples:,} held-out examples{noise}" if score != "train_loss" else "mean over sites"
    yield _tile(_TITLES[score], before + (shown(values[-1]) if values else DASH), where if values else "not measured")
    for title, way in (("Sent by a site", "up"), ("Received by a site", "down")):
        sent, dense = run.total(f"{way}_bytes"), run.total(f"{way}_bytes_fp32")
        cost = f"{_ratio(sent, dense)} of fp32 LoRA; {_bits(sent, dense)}\u00a0bits\u00a0per\u00a0parameter"
        yield _tile(title, _size(sent / run.active) if done else DASH, cost if done else "nothing yet")
    refused = int(run.total("refused"))
    replies = f"{_many(int(run.total('counted')), 'update')} counted, {refused} refused"
    yield _tile("Rounds", f"{done}" + (f" <i>of {plan.rounds}</i>" if done < plan.rounds else ""), replies)
    seconds = run.total("round_s")
    yield _tile("Time", _time(seconds) if done else DASH, f"{_time(seconds / done)} a round" if done else "nothing yet")


def _tile(title: str, value: str, note: str) -> str:
    return f"<div><dt>{title}</dt><dd><b>{value}</b><span>{escape(note)}</span></dd></div>"


def _sites_table(run: _Run) -> str:
    rows = []
    for name, traffic in run.sites.items():
        known = run.facts.sites.get(name)
        up, down = (sum(getattr(t, key) for t in traffic) for key in ("up_bytes", "down_bytes"))
        labels = f"{known.labels} of {run.facts.labels}" if known and run.facts.labels else DASH
        rows.append([name, f"{known.examples:,}" if known else DASH, labels, len(traffic), _size(up), _size(down)])
    return _table("Sites", ["site", "examples", "labels", "rounds counted", "sent", "received"], rows)


def _rounds_table(run: _Run) -> str:
    rows = [
        [
            row.round,
            *(_FORMATS[key](getattr(row, key)) for key in ("loss", "accuracy", "train_loss")),
            f"{row.learning_rate:.3g}",
            _size(row.up_bytes / max(row.counted, 1)),
            _size(row.down_bytes / max(row.counted, 1)),
            _bits(row.up_bytes, row.up_bytes_fp32),
            _bits(row.down_bytes, row.down_bytes_fp32),
            row.counted,
            row.refused,
            f"{row.round_s:.1f}",
        ]
        for row in run.rounds
    ]
    before = [_FORMATS[key](run.facts.before.get(key)) for key in ("loss", "accuracy")]
    if any(run.facts.before.values()):
        rows.insert(0, ["before", *before, *[DASH] * 9])
    heads = ["round", "loss", "accuracy", "training loss", "learning rate", "sent a site", "received a site"]
    heads += ["bits up", "bits down", "counted", "refused", "seconds"]
    return _table("Rounds", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th scope=col>{head}</th>" for head in heads)
    body = "\n".join(
        f"<tr><th scope=row>{escape(str(row[0]))}</th>"
        + "".join(f"<td>{escape(str(x))}</td>" for x in row[1:])
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class=scroll tabindex=0 role=region aria-label="{title}">{table}</div>'


# Figures. Each is drawn alone, about 440 CSS pixels wide, so that its letters are as large on a phone as on paper.


def _figures(run: _Run) -> str:
    parts = ["<h2>What was reached</h2>\n<div class=figures>"]
    keys = [key for key in ("accuracy", "loss") if _curves(run, key)] or ["train_loss"]
    parts += [_against_rounds(run, key) for key in keys] + [_against_bytes(run, key) for key in keys]
    parts.append("</div>\n<h2>What it cost</h2>\n<div class=figures>")
    parts += [_bytes_of_sites(run, way) for way in ("up", "down")] + [_time_of_rounds(run), _time_of_stages(run)]
    return "\n".join([*parts, "</div>"])


def _series(run: _Run, key: str) -> tuple[list[int], list[float | None]]:
    """Rounds (0: before training) and what was measured in them."""
    before = [(0, run.facts.before[key])] if run.facts.before.get(key) is not None else []
    pairs = before + [(row.round, getattr(row, key)) for row in run.rounds]
    return [number for number, _ in pairs], [value for _, value in pairs]


def _curves(run: _Run, key: str) -> bool:
    return any(getattr(row, key) is not None for row in run.rounds)


def _line(axes: Any, x: Sequence[float], y: Sequence[float | None], colour: str, label: str, style: str = "-") -> None:
    marker = "o" if len(x) <= MANY_ROUNDS else ""
    values = [math.nan if value is None else value for value in y]
    axes.plot(x, values, style, color=_ink(colour), label=label, marker=marker, ms=3.4, lw=1.6, solid_capstyle="round")


def _against_rounds(run: _Run, key: str) -> str:
    def draw(axes: Any) -> None:
        x, y = _series(run, key)
        _line(axes, x, y, "up", "training, mean over sites" if key == "train_loss" else "held-out")
        if key == "loss" and _curves(run, "train_loss"):
            _line(axes, *_series(run, "train_loss"), "muted", "training, mean over sites", "--")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(-0.03 * x[-1], 1.03 * x[-1])
        _finish_scores(axes, key, legend=key == "loss")

    return _figure(f"{_TITLES[key]} by round", _ends(run, key), draw)


def _against_bytes(run: _Run, key: str) -> str:
    def draw(axes: Any) -> None:
        _, y = _series(run, key)
        y = y[-len(run.rounds) :]
        for suffix, colour, label, style in (("", "up", "as sent", "-"), ("_fp32", "muted", "fp32 LoRA", "--")):
            x, total = [], 0
            for row in run.rounds:
                total += getattr(row, "up_bytes" + suffix) + getattr(row, "down_bytes" + suffix)
                x.append(max(total, 1) / run.active)
            _line(axes, x, y, colour, label, style)
        axes.set_xlabel("sent + received by a site")
        _logarithmic(axes)
        _finish_scores(axes, key, legend=True)

    note = "The dashed line is the same curve at what these rounds cost in fp32 LoRA, not a second run."
    return _figure(f"{_TITLES[key]} by bytes", _ends(run, key), draw, note)


def _ends(run: _Run, key: str) -> str:
    values = [value for value in _series(run, key)[1] if value is not None]
    return f"from {_FORMATS[key](values[0])} to {_FORMATS[key](values[-1])}" if values else "not measured"


def _finish_scores(axes: Any, key: str, legend: bool) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %" if key == "accuracy" else f"{y:g}"))
    if key == "accuracy":
        axes.set_ylim(0, min(1.03, max(0.05, 1.12 * axes.get_ylim()[1])))
    if legend:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.3, borderpad=0, handlelength=2.2
        )


def _logarithmic(axes: Any) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _size(x, digits=0)))


def _bytes_of_sites(run: _Run, way: str) -> str:
    totals = {name: sum(getattr(t, f"{way}_bytes") for t in rounds) for name, rounds in run.sites.items()}
    many = len(totals) > MANY_SITES

    def draw(axes: Any) -> None:
        size = FuncFormatter(lambda x, _: _size(x, digits=None))
        if many:
            values = sorted(totals.values(), reverse=True)
            edges = [i + 0.5 for i in range(len(values) + 1)]
            axes.stairs(values, edges, fill=True, color=_ink(way), lw=0)
            axes.set_xlabel("site, from the most bytes to the least")
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(0, 1.1 * max(*values, 1))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(size)
        else:
            _bars(axes, totals, [way] * len(totals), _size)

    title = {"up": "Sent by each site", "down": "Received by each site"}[way]
    spread = f"{_size(min(totals.values()))} to {_size(max(totals.values()))} over {_many(len(totals), 'site')}"
    return _figure(title, spread, draw, height=2.4 if many else 0.4 + 0.22 * max(len(totals), 5))


def _bars(axes: Any, values: Mapping[str, float], colours: Iterable[str], label: Callable[[float], str]) -> None:
    y, largest = range(len(values)), max(*values.values(), 1e-9)
    axes.barh(y, list(values.values()), 0.68, color=[_ink(colour) for colour in colours])
    axes.set_yticks(y, [_short(name) for name in values], parse_math=False)
    axes.set_ylim(max(len(values), 3) - 0.4, -0.6)
    axes.set_xlim(0, 1.34 * largest)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    for i, value in enumerate(values.values()):
        axes.text(value + 0.02 * largest, i, label(value), va="center", color=_ink("ink"))


def _time_of_rounds(run: _Run) -> str:
    x = [row.round for row in run.rounds]
    stages = {stage: [getattr(row, f"{stage}_s") for row in run.rounds] for stage in STAGES}

    def draw(axes: Any) -> None:
        base = [0.0] * len(x)
        for stage, seconds in stages.items():
            axes.bar(x, seconds, 0.68 if len(x) <= MANY_ROUNDS else 1.0, base, color=_ink(stage), label=stage)
            base = [low + more for low, more in zip(base, seconds, strict=True)]
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(x) > 2 else FixedLocator(x))
        margin = 0.6 if len(x) > 2 else 1.5
        axes.set_xlim(x[0] - margin, x[-1] + margin)
        axes.set_ylim(0, 1.05 * max(*base, 1e-3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} s"))
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5, borderaxespad=0.3, borderpad=0, handlelength=0.8
        )

    return _figure("Time by round", f"{_time(run.total('round_s'))} in all", draw)


def _time_of_stages(run: _Run) -> str:
    totals = {stage: run.total(f"{stage}_s") for stage in STAGES}
    whole = sum(totals.values()) or 1.0

    def label(seconds: float) -> str:
        share = 100 * seconds / whole
        return f"{_time(seconds)}, " + (f"{share:.1f} %" if share >= 0.05 or not seconds else "< 0.1 %")

    said = "; ".join(f"{stage} {label(seconds)}" for stage, seconds in totals.items())
    return _figure("Time by stage", said, lambda axes: _bars(axes, totals, STAGES, label))


def _figure(title: str, said: str, draw: Callable[[Any], None], note: str = "", height: float = 2.4) -> str:
    """A card with a title, a drawing that a screen reader hears as `said`, and a note."""
    small = f"\n<p>{escape(note)}</p>" if note else ""
    svg = _svg(f"{title}: {said}", title, draw, height)
    return f"<figure>\n<figcaption>{escape(title)}</figcaption>\n{svg}{small}\n</figure>"


def _svg(said: str, salt: str, draw: Callable[[Any], None], height: float) -> str:
    """Inline SVG that takes letters and colours from the page, with ids that no other figure on it has."""
    with matplotlib.rc_context({**_LOOK, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the letters of every language
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    prefix = re.sub(r"\W", "-", salt.lower())

    def mend(tag: re.Match[str]) -> str:
        text = re.sub(r' id="([^"]+)"', rf' id="{prefix}-\1"', tag[0])
        text = re.sub(r'(url\(#|xlink:href="#)', rf"\1{prefix}-", text).replace("xlink:href", "href")
        return re.sub(r"#0000([01]\w)\b", lambda colour: f"var(--{COLOURS[int(colour[1], 16)]})", text)

    drawing = re.sub(r"<defs>\s*<style.*?</defs>\s*", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    head, body = re.split(r"<svg[^>]*>\s*", drawing, maxsplit=1)[0:2]
    box = re.search(r'viewBox="[^"]*"', drawing[len(head) :])
    shape = box[0] if box else ""
    return f'<svg role="img" aria-label="{escape(said)}" {shape}>\n{re.sub(r"<[^>]*>", mend, body).rstrip()}'


def _ink(colour: str) -> str:
    return f"#0000{COLOURS.index(colour):02x}"


# Words and numbers.


def _size(n: float, digits: int | None = 1) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            break
        n /= 1000
    number = f"{n:g}" if digits is None else f"{n:.{0 if unit == 'B' else digits}f}"
    return f"{number} {unit}"


def _time(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _ratio(sent: float, dense: float) -> str:
    return f"1/{dense / sent:.1f}" if sent and dense else DASH


def _bits(sent: float, dense: float) -> str:
    return f"{32 * sent / dense:.3f}" if dense else DASH


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _short(name: str) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    return text if len(text) <= 18 else text[:17] + "…"


_TITLES = {"accuracy": "Accuracy", "loss": "Loss", "train_loss": "Training loss"}
_FORMATS: Mapping[str, Callable[[float | None], str]] = {
    "accuracy": lambda x: DASH if x is None else f"{100 * x:.1f}\u00a0%",
    "loss": lambda x: DASH if x is None else f"{x:.3f}",
    "train_loss": lambda x: DASH if x is None else f"{x:.3f}",
}
_LOOK = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.2,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "text.color": _ink("ink"),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _ink("muted")),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), _ink("line")),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name – fedpeft</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class=kind>Federated fine-tuning run</p>
<h1>$name</h1>
<p class=lead>$sentence</p>
<p class=how>$how</p>
$notices</header>
<dl class=tiles>
$tiles
</dl>
$figures
<h2>Sites</h2>
$sites
<h2>Rounds</h2>
$rounds
<h2>Configuration</h2>
$config
<footer>
<h2>How to read the numbers</h2>
<dl>
<dt>Bytes</dt><dd>Whole messages as they were sent, framing and headers included; 1 kB is 1,000 bytes. A site's figure
is the total over the sites that took part. Messages of refused updates are counted; their baseline is not.</dd>
<dt>Bits per parameter</dt><dd>All those bits over trainable parameters, rounds and counted updates, for each direction.
Up is what sites send, down what they receive. The first round sends the whole adapter down.</dd>
<dt>fp32 LoRA</dt><dd>The baseline: 4 bytes (32 bits) a parameter, in each direction, for every counted update, without
framing. 1/10 means a tenth of its bytes.</dd>
<dt>Accuracy and loss</dt><dd>Of the global adapter on held-out examples that no site trains on; ± is one binomial
standard error, which says nothing of other seeds or other data. Loss is in nats. Training loss is the sites' mean while
they train, weighted as their updates are.</dd>
<dt>Time</dt><dd>By the clock. Train and encode are summed over sites: where sites work at the same time, the stages add
up to more than the clock.</dd>
<dt>Privacy</dt><dd>Compression is not privacy: the figures on this page say nothing of what an update reveals.</dd>
</dl>
<p>Written by fedpeft $version.</p>
</footer>
</main>
</body>
</html>
"""
_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#17202b;--muted:#5a6675;--line:#dde2e8;--accent:#0b5fa5;
--up:#0b5fa5;--down:#c75000;--train:#0b5fa5;--encode:#e69f00;--fold:#009e73;--evaluate:#c46a9c;--other:#9aa4b0}
@media screen and (prefers-color-scheme:dark){:root{
--page:#10151b;--card:#171e26;--ink:#e7ebf0;--muted:#9ba7b5;--line:#2c3641;--accent:#6db6f2;
--up:#6db6f2;--down:#f0965a;--train:#6db6f2;--encode:#e9b949;--fold:#35bd93;--evaluate:#dd94bc;--other:#75808d}}
*{box-sizing:border-box;print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:60rem;margin:0 auto;padding:4rem 1.5rem 3rem}
.kind{margin:0;color:var(--accent);font-size:.8rem;font-weight:600;letter-spacing:.06em;text-transform:uppercase}
h1{margin:.2rem 0 .8rem;font-size:2.3rem;line-height:1.15;letter-spacing:-.02em}
h2{margin:3.2rem 0 1rem;font-size:1.2rem;letter-spacing:-.01em;break-after:avoid}
.lead{max-width:46rem;text-wrap:balance;margin:0;color:var(--muted);font-size:1.05rem}
.how{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:.8rem 0 0;color:var(--muted);font-size:.85rem}
code{color:var(--ink);font:.95em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.notice{margin:1.2rem 0 0;padding:.6rem .9rem;border-left:3px solid var(--encode);background:var(--card)}
.note{color:var(--muted);font-size:.9rem}
.tiles{display:grid;grid-template-columns:repeat(6,1fr);gap:1px;margin:2.4rem 0 0;background:var(--line);
border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
.tiles div{grid-column:span 2;padding:1.1rem 1.2rem;background:var(--card);break-inside:avoid}
.tiles div:nth-child(n+4){grid-column:span 3}
dt{color:var(--muted);font-size:.85rem}
dd{margin:0}
.tiles b{display:block;margin:.1rem 0 .3rem;font-size:1.65rem;font-weight:600;line-height:1.2;letter-spacing:-.02em}
.tiles div:first-child b{color:var(--accent)}
.tiles i{color:var(--muted);font-style:normal;font-weight:400}
.tiles span{display:block;color:var(--muted);font-size:.85rem;line-height:1.4}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem}
figure{margin:0;padding:1rem 1.1rem .8rem;background:var(--card);border:1px solid var(--line);border-radius:.6rem;
break-inside:avoid}
figcaption{margin-bottom:.4rem;font-size:.95rem;font-weight:600}
figure p{margin:.5rem 0 0;color:var(--muted);font-size:.8rem;line-height:1.4}
svg{display:block;width:100%;height:auto}
svg *{stroke-linecap:butt;stroke-linejoin:round}
svg text{font-family:inherit!important}
.scroll,pre{overflow:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
.scroll{max-height:30rem}
table{width:100%;overflow-wrap:normal;border-collapse:collapse;font-size:.875rem}
th,td{padding:.45rem .7rem;text-align:right;white-space:nowrap}
th:first-child{text-align:left}
thead th{position:sticky;top:0;background:var(--card);color:var(--muted);font-weight:500;vertical-align:bottom;
white-space:normal;box-shadow:inset 0 -1px var(--line)}
tbody th{min-width:4.6rem;max-width:16rem;font-weight:500;white-space:normal;overflow-wrap:break-word}
tbody tr+tr>*{border-top:1px solid var(--line)}
pre{margin:0;padding:1rem 1.2rem;font:.82rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
footer{margin-top:3.5rem;border-top:1px solid var(--line);color:var(--muted);font-size:.875rem}
footer h2{margin:1.6rem 0 1rem;color:var(--ink);font-size:1rem}
footer dl{display:grid;grid-template-columns:10rem 1fr;gap:.5rem 1.5rem;margin:0 0 2rem}
footer dt{color:var(--ink);font-size:inherit}
@media (max-width:44rem){main{padding:2.2rem 1rem}h1{font-size:1.8rem}.figures{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:1fr}.tiles div,.tiles div:nth-child(n+4){grid-column:auto}
footer dl{grid-template-columns:1fr;gap:.1rem}footer dd{margin-bottom:.7rem}}
@media print{@page{margin:16mm}:root{--page:#fff}body{font-size:10.5pt}.tiles b{font-size:1.35rem}
main{max-width:none;padding:0}.scroll,pre{max-height:none;
overflow:visible}pre{white-space:pre-wrap}table{font-size:8pt}th,td{padding:.25rem .35rem}thead th{position:static}
tr{break-inside:avoid}}
"""
