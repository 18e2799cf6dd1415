"""The figure of a selection: loss of the text and retrieval against attention cost, on held-out documents."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.results.held_out import MeasureRow
from layersearch.results.plots import style
from layersearch.results.plots.style import BLACK, BLUE, GRAY, VERMILION
from layersearch.results.result import ALL_FULL, Result
from layersearch.results.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 4.4
LEFT = 0.075


def plot_selection(result: Result, rows: Sequence[MeasureRow], path_stem: Path | str) -> list[Path]:
    """Draw loss and retrieval against cost as PNG and SVG; see `write_figure` for path, result and errors."""
    title = [sentence.rstrip(".") + "." for sentence in result.verdict.split(". ")]

    def draw(figure: "Figure", top: float) -> None:
        panels: Any = figure.subplots(1, 2, sharex=True)
        figure.subplots_adjust(
            left=LEFT,
            right=0.985,
            bottom=0.62 / figure.get_figheight(),
            top=top - 0.25 / figure.get_figheight(),
            wspace=0.2,
        )
        winner = None if result.winner is None else result.winner.schedule
        kinds: list[tuple[str, Callable[[MeasureRow], Interval | None]]]
        kinds = [("text loss, nats", lambda row: row.text), ("answers' digits right", lambda row: row.accuracy)]
        for axes, (label, value) in zip(panels, kinds, strict=True):
            _draw(axes, [(row, value(row)) for row in rows if value(row) is not None], winner, result.budget)
            axes.set_ylabel(label)
        panels[0].legend(loc="upper right", fontsize=8.5, frameon=False)
        panels[1].set_ylim(-0.03, 1.03)

    return style.write_figure(path_stem, title, HEIGHT, LEFT, draw)


def _draw(axes: "Axes", points: Sequence[tuple[MeasureRow, Interval | None]], winner: Any, budget: float) -> None:
    style.style_axes(axes)
    axes.set_xlabel("attention FLOPs, share of all_full")
    axes.axvline(budget, color=BLACK, ls=(0, (4, 3)), lw=1.1, zorder=1, label=f"budget {budget:g}")
    groups: dict[str, dict[str, Any]] = {
        "chosen": {"color": BLUE, "marker": "o", "ms": 5.5, "zorder": 4},
        "named placement": {"color": GRAY, "marker": "s", "ms": 5, "zorder": 3},
        ALL_FULL: {"color": BLACK, "marker": "D", "ms": 5.5, "zorder": 4},
    }
    for name, look in groups.items():
        some = [(row, found) for row, found in points if _group(row) == name and found is not None]
        if some:
            axes.errorbar(
                [row.cost for row, _ in some],
                [found.mean for _, found in some],
                yerr=[found.half_width or 0.0 for _, found in some],
                ls="none", elinewidth=0.9, capsize=2, label=name, **look,
            )  # fmt: skip
    for row, found in points:
        if row.schedule == winner and found is not None:
            axes.plot(
                [row.cost], [found.mean], "o", ms=12, mfc="none", mec=VERMILION, mew=1.8, zorder=5, label="winner"
            )


def _group(row: MeasureRow) -> str:
    return ALL_FULL if any(ALL_FULL in name for name in row.names) else "named placement" if row.names else "chosen"
