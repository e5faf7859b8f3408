"""Small pictures as SVG that stand in the page itself, and take their colours from its theme.

They are drawn in the colours of the light theme. Each colour of `COLOURS` becomes a variable of the style sheet: so
the same picture is right in the dark and on paper. Text stays text: it can be searched and copied.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Name in the style sheet → colour in the light theme. Okabe and Ito's, which colour-blind readers tell apart.
COLOURS = {
    "ink": "#1b1d21",
    "muted": "#5d636d",
    "line": "#d5d8de",
    "paper": "#fefefe",
    "single": "#0072b2",
    "joint": "#595959",
    "rule-1": "#d55e00",
    "rule-2": "#009e73",
    "rule-3": "#cc79a7",
    "rule-4": "#e69f00",
    "rule-5": "#56b4e9",
}
#: Width and height of a panel, in inches; a panel is about 330 pixels wide on every screen.
PANEL = (3.4, 2.5)
_LONGEST = 22
#: Names of groups; they would be there once in each picture. What is referred to has other names.
_GROUP_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')
_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def svg(draw: Callable[[Axes], None], key: str, inches: tuple[float, float] = PANEL) -> str:
    """Draw a panel.

    Args:
        draw: Draws onto the axes; takes its colours from `COLOURS`.
        key: Different for every picture of a page.
        inches: Width and height.

    Returns:
        An `<svg>` element, without a size of its own. The same drawing gives the same text.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 8, "text.parse_math": False}):
        figure = Figure(figsize=inches, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        _dress(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=_METADATA)
    return _inline(stream.getvalue())


def short(name: str, longest: int = _LONGEST) -> str:
    """A name that fits an axis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(COLOURS["line"])
    axes.tick_params(colors=COLOURS["muted"], labelsize=8, length=2.5, width=0.6)
    axes.tick_params(axis="both", labelcolor=COLOURS["ink"])
    axes.grid(color=COLOURS["line"], linewidth=0.5)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(COLOURS["muted"])
        label.set_fontsize(8)


def _inline(text: str) -> str:
    """The element alone, sized by its surroundings, coloured by the style sheet."""
    found = _SIZE.search(text)
    assert found is not None
    body = _GROUP_ID.sub("", text[found.end() :])
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    return f'<svg viewBox="{found[1]}" aria-hidden="true" focusable="false">{body}'.strip()
