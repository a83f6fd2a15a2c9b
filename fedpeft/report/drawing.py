"""Drawings as inline SVG in the letters and colours of the page around them.

Each is drawn alone, about 440 CSS pixels wide, so that its letters are as large on a phone as on paper.
"""

import io
import re
import warnings
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedpeft.report.run import STAGES

MANY_ROUNDS = 40  # beyond, marks and gaps would blur

INK = {name: f"#0000{i:02x}" for i, name in enumerate(("ink", "muted", "line", "up", "down", *STAGES), 1)}
"""Colours as they are drawn, by the CSS variables that they become."""

LOOK = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.2,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "ytick.major.size": 0,
    "legend.loc": "lower left",
    "legend.frameon": False,
    "legend.borderaxespad": 0.3,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.2,
    "text.color": INK["ink"],
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK["muted"]),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), INK["line"]),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
}
"""Settings of matplotlib that hold from `canvas` to `card`."""


def canvas(height: float = 2.4) -> Axes:
    """Axes to draw on, `height` inches high."""
    return Figure(figsize=(4.6, height), layout="constrained").add_subplot()


def legend(axes: Axes, columns: int, handle: float = 2.2) -> None:
    """A legend in one line above the axes."""
    axes.legend(bbox_to_anchor=(0.0, 1.0), ncols=columns, handlelength=handle)


def card(axes: Axes, title: str, said: str, note: str = "") -> str:
    """A figure with a title of its own on the page, a drawing that a screen reader hears as `said`, and a note."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the letters of every language
        FigureCanvasSVG(axes.figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<[^>]*>", _mend, buffer.getvalue().partition("<svg ")[2])
    small = f"\n<p>{escape(note)}</p>" if note else ""
    return (
        f"<figure>\n<figcaption>{escape(title)}</figcaption>\n"
        f'<svg role="img" aria-label="{escape(f"{title}: {said}")}" {svg.rstrip()}{small}\n</figure>'
    )


def _mend(tag: re.Match[str]) -> str:
    """A tag with the page's colours, and without the name of a group, which other drawings have too."""
    text = re.sub('<g id="[^"]*"', "<g", tag[0])
    for name, colour in INK.items():
        text = text.replace(colour, f"var(--{name})")
    return text
