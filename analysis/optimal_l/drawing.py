"""The study's figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from layersearch.optimal_l.answer import SettingAnswer
from layersearch.optimal_l.plots import draw_stars
from layersearch.results.plots.style import BLACK, BLUE, GRAY, VERMILION, style_axes, write_figure

if TYPE_CHECKING:
    from groups import Group
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from report import Row

COLORS = {
    "all-full": "#000000",
    "all-sparse": "#9A9A9A",
    "bottom": "#D55E00",
    "middle": "#7F3C8D",
    "interleaved": "#009E73",
    "top": "#0072B2",
    "searched": "#B8860B",
}
"""By placement."""
ROW, HEAD, FOOT = 0.24, 0.62, 0.62
"""Heights of a line, of what stands above the lines and of the axis, in inches."""
_NEAR = 0.02
"""Nats up to which differences along training are drawn to scale; beyond, by their logarithm."""
_FAR = 6.0
"""Differences are drawn up to so many times the middle end of an interval; those beyond it stand at the edge."""


def draw_dots(found: Sequence[tuple[Group, Sequence[Row]]], path_stem: Path) -> list[Path]:
    """Draw the difference of every line to its group's base, one panel below the other."""
    heights = [HEAD + FOOT + ROW * len(rows) for _, rows in found]

    def draw(figure: Figure, top: float) -> None:
        tall = figure.get_figheight()
        at = top * tall
        for (group, rows), height in zip(found, heights, strict=True):
            axes = figure.add_axes((0.36, (at - height + FOOT) / tall, 0.6, ROW * len(rows) / tall))
            _dots(axes, group, rows)
            at -= height

    title = ["Mean loss of each line less its base's (paired by seed, 95%, corrected for the lines compared)."]
    return write_figure(path_stem, title, sum(heights) + 0.1, 0.02, draw)


def _dots(axes: Axes, group: Group, rows: Sequence[Row]) -> None:
    ends = [e for row in rows if row.to_base for e in (row.to_base.low, row.to_base.high) if e is not None]
    far = sorted(abs(end) for end in ends)
    reach = max(far[len(far) // 2] * _FAR, 1e-3) if far else 1.0
    low = max(-reach, min([0.0, *ends]))
    high = min(reach, max([0.0, *ends]))
    room = 0.06 * (high - low or 1.0)
    axes.set_xlim(low - room, high + room)
    for y, row in enumerate(rows):
        gap = row.to_base
        if gap is None:
            axes.plot([0.0], [y], "*", ms=11, color=BLACK, zorder=4)
            continue
        if not low <= gap.mean <= high:
            edge = high if gap.mean > high else low
            color = GRAY if not gap.excludes_zero else BLUE if gap.mean < 0 else VERMILION
            axes.plot([edge], [y], ">" if gap.mean > high else "<", ms=7, color=color, zorder=4)
            axes.annotate(f"{gap.mean:+.2f}", (edge, y), (-8 if gap.mean > high else 8, 0), textcoords="offset points",
                          ha="right" if gap.mean > high else "left", va="center", fontsize=8)  # fmt: skip
            continue
        color = GRAY if not gap.excludes_zero else BLUE if gap.mean < 0 else VERMILION
        if gap.low is not None and gap.high is not None:
            axes.plot([max(gap.low, low), min(gap.high, high)], [y, y], "-", color=color, lw=1.4, zorder=3)
            caps = [end for end in (gap.low, gap.high) if low <= end <= high]
            axes.plot(caps, [y] * len(caps), "|", color=color, ms=5, zorder=3)
        axes.plot([gap.mean], [y], "o", ms=6, color=color, mec="white", mew=0.6, zorder=4)
    axes.axvline(0.0, color=BLACK, lw=0.8, zorder=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{row.label}  {row.cost:.3f}" for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_title(textwrap.fill(group.question, 90), fontsize=9.5, loc="right")
    axes.set_xlabel(
        f"loss less that of {group.base} (nats); beside the names: attention cost, all-full = 1", fontsize=8.5
    )
    style_axes(axes)


def first_name(row: Row) -> str:
    """Return the first of the names that a line has."""
    return row.label.split(" = ")[0]


def draw_ranks(found: Sequence[tuple[Group, Sequence[Row]]], path_stem: Path) -> list[Path]:
    """Draw every line's mean loss along training, less the median of all lines, so that crossings show."""
    labels = sorted({first_name(row) for _, rows in found for row in rows})
    style = {label: ("s" if "(2)" in label else "o", COLORS[label.partition("(")[0]]) for label in labels}

    def draw(figure: Figure, top: float) -> None:
        rows_of_axes = (len(found) + 1) // 2
        for number, (group, rows) in enumerate(found):
            _ranks(figure.add_subplot(rows_of_axes, 2, number + 1), group, rows, style)
        tall = figure.get_figheight()
        figure.subplots_adjust(
            left=0.085, right=0.985, bottom=1.25 / tall, top=top - 0.25 / tall, hspace=0.4, wspace=0.2
        )
        for label in labels:
            marker, color = style[label]
            figure.axes[0].plot([], [], marker + "-", ms=4, lw=1.3, color=color, label=label)
        figure.legend(loc="lower center", fontsize=8.5, frameon=False, ncols=5)

    title = [
        "Loss along training, less the lines' median: where lines cross, their order flips. Circles: one full layer; "
        "squares: two."
    ]
    return write_figure(path_stem, title, 3.3 * ((len(found) + 1) // 2) + 1.0, 0.02, draw)


def _ranks(axes: Axes, group: Group, rows: Sequence[Row], style: Mapping[str, tuple[str, str]]) -> None:
    steps = sorted(set.intersection(*(set(curve) for row in rows for curve in row.curves)))
    means = {first_name(row): [sum(c[at] for c in row.curves) / len(row.curves) for at in steps] for row in rows}
    middle = [median(values) for values in zip(*means.values(), strict=True)]
    for label, found in means.items():
        marker, color = style[label]
        values = [value - mid for value, mid in zip(found, middle, strict=True)]
        axes.plot([step / steps[-1] for step in steps], values, marker + "-", ms=4, lw=1.3, color=color)
    axes.set_title(group.name.replace("-", ", "), fontsize=9.5)
    axes.set_yscale("symlog", linthresh=_NEAR, linscale=0.5)
    ticks = [sign * size for size in (0.02, 0.1, 0.5, 2.0) for sign in (-1, 1)]
    low, high = axes.get_ylim()
    axes.set_yticks([0.0, *(tick for tick in ticks if low <= tick <= high)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("share of the training", fontsize=8.5)
    axes.set_ylabel("nats", fontsize=8.5)
    style_axes(axes)


def draw_moves(
    found: Mapping[str, Sequence[tuple[int, SettingAnswer]]], units: Mapping[str, str], path_stem: Path
) -> list[Path]:
    """Draw l* and the l's not excluded against each factor, with its unit."""
    lines = (len(found) + 2) // 3

    def draw(figure: Figure, top: float) -> None:
        for number, (name, answers) in enumerate(found.items()):
            axes = figure.add_subplot(lines, 3, number + 1)
            draw_stars(figure, axes, [value for value, _ in answers], [one for _, one in answers])
            axes.set_ylim(-0.5, max(*(one.n_layers for _, one in answers), 1) + 0.5)
            axes.set_title(f"{name.replace('-', ', on ')} ({units[name]})", fontsize=9.5)
            if number % 3 == 0:
                axes.set_ylabel("l*")
        tall = figure.get_figheight()
        figure.subplots_adjust(left=0.055, right=0.985, bottom=0.35 / tall, top=top - 0.25 / tall, hspace=0.4)

    title = [
        "How l* moves. Dots: l* against the best found; squares: against all-full; bars: the l's that are not excluded "
        "(95%)."
    ]
    return write_figure(path_stem, title, 2.9 * lines, 0.02, draw)
