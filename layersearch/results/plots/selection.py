"""The figure of a selection: loss of the text and retrieval against attention cost, on held-out documents."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.results.held_out import MeasureRow, compact
from layersearch.results.plots import style
from layersearch.results.plots.style import BLACK, BLUE, GRAY, VERMILION
from layersearch.results.result import ALL_FULL, Result
from layersearch.results.stats import Interval
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 4.6
LEFT = 0.075
CLIP = 2.5  # losses above this many times the median are named, not drawn

Value = Callable[[MeasureRow], Interval | None]


def plot_selection(result: Result, rows: Sequence[MeasureRow], path_stem: Path | str) -> list[Path]:
    """Draw loss and retrieval against cost as PNG and SVG; see `write_figure` for path, result and errors.

    The loss is the difference to all_full, paired by document. Losses far above the others are named, not drawn.
    """
    verdict = result.verdict
    for row in rows:
        verdict = verdict.replace(str(row.schedule), compact(row.schedule))
    title = [sentence.rstrip(".") + "." for sentence in verdict.split(". ")]
    winner = None if result.winner is None else result.winner.schedule

    def draw(figure: "Figure", top: float) -> None:
        height = figure.get_figheight()
        panels: Any = figure.subplots(1, 2, sharex=True)
        edges = {"left": LEFT, "right": 0.985, "bottom": 0.6 / height, "top": top - 0.1 / height, "wspace": 0.2}
        figure.subplots_adjust(**edges)
        for axes, value in zip(panels, (lambda row: row.text_to_full, lambda row: row.accuracy), strict=True):
            _draw(axes, rows, value, winner, result.budget)
        panels[0].set_ylabel("text loss minus all_full, nats")
        panels[0].legend(loc="upper right", fontsize=8.5, frameon=False)
        panels[1].set_ylabel("share of the answers' digits right")
        panels[1].set_ylim(-0.03, 1.03)

    return style.write_figure(path_stem, title, HEIGHT, LEFT, draw)


def _draw(axes: "Axes", rows: Sequence[MeasureRow], value: Value, winner: Schedule | None, budget: float) -> None:
    style.style_axes(axes)
    axes.set_xlabel("attention FLOPs, share of all_full")
    axes.axvline(budget, color=BLACK, ls=(0, (4, 3)), lw=1.1, zorder=1, label=f"budget {budget:g}")
    points = [(row, found) for row in rows if (found := value(row)) is not None]
    middle = sorted(found.mean for _, found in points)[len(points) // 2] if points else 0.0
    highest = max([CLIP * middle, *(found.mean for row, found in points if not row.names)], default=1.0)
    groups: dict[str, dict[str, Any]] = {
        "named placement": {"color": GRAY, "marker": "s", "ms": 5, "zorder": 3},
        "chosen": {"color": BLUE, "marker": "o", "ms": 5.5, "zorder": 4},
        ALL_FULL: {"color": BLACK, "marker": "D", "ms": 5.5, "zorder": 4},
    }
    shown: list[float] = []
    for name, look in groups.items():
        some = [(row, found) for row, found in points if _group(row) == name and found.mean <= highest]
        shown += [found.mean + (found.half_width or 0.0) for _, found in some]
        if some:
            x, y = [row.cost for row, _ in some], [found.mean for _, found in some]
            bars = [found.half_width or 0.0 for _, found in some]
            axes.errorbar(x, y, yerr=bars, ls="none", elinewidth=0.9, capsize=2, label=name, **look)
    for row, found in points:
        if row.schedule == winner:
            look = {"ms": 12, "mfc": "none", "mec": VERMILION, "mew": 1.8, "zorder": 5}
            axes.plot([row.cost], [found.mean], "o", ls="none", label="winner", **look)
    top = 1.12 * max(shown, default=0.0) or 1.0
    axes.set_ylim(min([0.0, *(found.mean for _, found in points)]) - 0.03 * top, top)
    above = ", ".join(f"{row.label} +{found.mean:.2f}" for row, found in points if found.mean > highest)
    if above:
        where: dict[str, Any] = {"xy": (0.98, 0.62), "xycoords": "axes fraction", "ha": "right", "va": "top"}
        axes.annotate(above.replace(", ", "\n") + "\n(above the axis)", **where, fontsize=8, color=GRAY)


def _group(row: MeasureRow) -> str:
    return ALL_FULL if any(ALL_FULL in name for name in row.names) else "named placement" if row.names else "chosen"
