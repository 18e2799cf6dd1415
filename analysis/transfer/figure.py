"""Draws transfer.png and transfer.svg: the loss at a small scale against the loss at a larger one, by schedule."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from scales import HERE, SCALES, schedules
from study import records
from tables import losses

from layersearch.results.plots.style import BLACK, BLUE, GRAY, VERMILION, style_axes, write_figure
from layersearch.results.transfer import corrected_correlation

PANELS = (("text", "base", "middle"), ("mix", "base", "middle"), ("mix", "base", "large"))
KINDS = {
    "no full layer": ("s", GRAY),
    "one full layer": ("o", BLUE),
    "two": ("D", VERMILION),
    "three or all": ("*", BLACK),
}


def kind(schedule: Any) -> str:
    """Return the group of a schedule in the legend."""
    return list(KINDS)[min(schedule.n_full, 3)]


def draw(figure: Figure, top: float) -> None:
    """Draw the panels."""
    made = list(schedules(SCALES["base"]).values())
    for number, (data, small, large) in enumerate(PANELS):
        left = 0.07 + number * 0.32
        axes = figure.add_axes((left, 0.23, 0.25, top - 0.33))
        pair = losses(records(), data, small), losses(records(), data, large)
        x, y = (side.mean(1) for side in pair)
        for label, (marker, color) in KINDS.items():
            at = [n for n, schedule in enumerate(made) if kind(schedule) == label]
            axes.scatter(x[at], y[at], marker=marker, color=color, s=26, label=label, zorder=3, alpha=0.8)
        found = corrected_correlation(*pair, resamples=1000)
        seeds = pair[1].shape[1]
        axes.set_title(f"{data}: Spearman {found}", fontsize=9.5, loc="left")
        axes.set(xlabel=f"loss at {small}, nats", ylabel=f"loss at {large}, nats ({seeds} seed{'s' * (seeds > 1)})")
        style_axes(axes)
        if not number:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)


if __name__ == "__main__":
    title = [
        "Loss at a small scale against loss at a larger one: text keeps most of the order, recall little.",
        "base: 6 layers, width 64, 64 tokens. middle: 6, 128, 256. large: 12, 256, 512. A point is a schedule.",
    ]
    write_figure(HERE / "transfer", title, 3.3, 0.02, draw)
