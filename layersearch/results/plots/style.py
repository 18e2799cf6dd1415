"""Shared style of the figures: palette, markers, title, axes, and output files."""

import io
import itertools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from layersearch.files import write_bytes
from layersearch.results.result import ALL_FULL, Entry
from layersearch.schedule import Schedule

# Okabe and Ito's palette ("Color Universal Design", 2008), distinct under the common color-vision deficiencies;
# every series also has its own marker.
BLUE, VERMILION, BLACK, GRAY = "#0072B2", "#D55E00", "#000000", "#9A9A9A"
BAND = "#F5E3B8"
_BASELINE_COLORS = ("#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7F3C8D", "#5D5D5D")
_BASELINE_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
DPI = 110
WIDTH = 9.6  # width of every figure, inches
LINE = 0.19  # height of a line of the title, inches
LOG_RATIO = 6.0  # an axis with a larger ratio of largest to smallest value is logarithmic


def write_figure(
    path_stem: Path | str, title: Sequence[str], height: float, left: float, draw: Callable[[Figure, float], None]
) -> list[Path]:
    """Draw below a title as PNG and SVG, byte-identical for the same input and matplotlib.

    Args:
        path_stem: the files' path without its suffix.
        title: sentences, the first one bold.
        height: without the title, inches.
        left: left end of the title, as a share of the width.
        draw: takes the figure and the top of the area below the title, as a share of the height.

    Returns:
        The paths of the PNG and the SVG. An OSError is raised if one cannot be written.
    """
    lines = [(line, True) for line in textwrap.wrap(title[0], 92)]
    for sentence in title[1:]:
        lines += [(line, False) for line in textwrap.wrap(sentence, 112)]
    paths = [Path(f"{path_stem}{suffix}") for suffix in (".png", ".svg")]
    with matplotlib.rc_context():
        # The user's matplotlibrc must not change the figure, and SVG text must stay text.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "layersearch", "svg.fonttype": "none", "font.size": 10})
        height += LINE * len(lines)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        for number, (line, bold) in enumerate(lines):
            weight = "bold" if bold else "normal"
            figure.text(left, 1 - (0.1 + LINE * number) / height, line, va="top", fontsize=10.5, fontweight=weight)
        draw(figure, 1 - (LINE * len(lines) + 0.2) / height)
        for path, facts in zip(paths, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
            content = io.BytesIO()
            figure.savefig(content, format=path.suffix[1:], metadata=facts)
            write_bytes(path, content.getvalue())
    return paths


def marker_styles(entries: Sequence[Entry]) -> dict[Schedule, tuple[str, str]]:
    """Return a marker and a color per schedule. A baseline has its own in all figures of a run; others share one."""
    own = zip(itertools.cycle(_BASELINE_MARKERS), itertools.cycle(_BASELINE_COLORS), strict=False)
    return {
        entry.schedule: ("o", BLUE) if not entry.names else ("*", BLACK) if ALL_FULL in entry.names else next(own)
        for entry in sorted(entries, key=lambda entry: entry.names)
    }


def style_axes(axes: Axes) -> None:
    """Give axes a light grid and no frame above and to the right."""
    axes.grid(color="#E4E4E4", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_axis(axes: Axes, which: str, values: Sequence[float], ends: Sequence[float] = ()) -> None:
    """Set limits and scale of an axis (``x`` or ``y``): every value is inside, interval ends may be outside."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    bottom, top = min(values), max(values)
    if bottom > 0 and top / bottom > LOG_RATIO:
        # A log scale has no zero: intervals are cut a little below the lowest value.
        reach = [end for end in ends if bottom / 1.6 < end < top * 1.6]
        limits = min([bottom, *reach]) / 1.2, max([top, *reach]) * 1.25
        axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
        return
    spread = (top - bottom) or max(abs(top), 1.0) * 0.01
    ends = [min(max(end, bottom - 0.6 * spread), top + 0.6 * spread) for end in ends]
    axes.set(**{f"{which}lim": (min([bottom, *ends]) - 0.08 * spread, max([top, *ends]) + 0.08 * spread)})
    axes.ticklabel_format(axis=which, useOffset=False)  # type: ignore[arg-type]
