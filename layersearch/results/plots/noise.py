"""The noise figure: every schedule with its seeds, and the spreads beside those from noise alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layersearch.results.plots import style
from layersearch.results.plots.style import BAND, BLACK, BLUE, GRAY, VERMILION
from layersearch.results.result import Entry, Result, Spread
from layersearch.results.sentences import noise_sentence, signal_sentence, spread_text
from layersearch.results.stats import decimals

ROW, BAR = 0.23, 0.5  # heights of a schedule's row and of a spread's, inches
LEGEND, AXIS = 0.92, 0.58  # heights of the legend and of an axis with its label, inches
LEFT, RIGHT = 0.3, 0.985  # left and right end of the axes, as shares of the width
MAX_ROWS = 26
MAX_NAME = 29  # characters of a schedule's label

Row = tuple[Entry, float, list[float]]
"""A schedule, its mean and its losses by seed: of the fresh seeds, before confirmation of the search's."""


def plot_signal(result: Result, path_stem: Path | str) -> list[Path]:
    """Draw signal against noise as PNG and SVG, byte-identical for the same result and matplotlib.

    The upper axes show the schedules by cost: mean, interval and single seeds. A band marks differences to the lowest
    mean that are noise. The lower axes show the spreads in seed standard deviations. Before two schedules are
    confirmed, the losses are those of the search's one seed, and the figure says so. Path, result and errors are those
    of `write_figure`.
    """
    rows, left_out = _rows(result)
    signal = result.signal
    named = [
        (f"placements, l = {signal.n_full}", signal.placements),
        ("(all_sparse, all_full)", signal.sparse_and_full),
        ("within the budget", signal.within_budget),
    ]
    bars = [(f"{len(spread.schedules)} {name}", spread) for name, spread in named if spread is not None]
    heights = ROW * max(2, len(rows)) + 0.1, BAR * len(bars)

    def draw(figure: Figure, top: float) -> None:
        height = figure.get_figheight()
        above = figure.add_axes((LEFT, top - heights[0] / height, RIGHT - LEFT, heights[0] / height))
        _draw_rows(above, result, rows)
        if left_out:
            above.plot([], [], ls="", label=f"of higher loss, not shown: {left_out}")
        if bars:
            below = figure.add_axes((LEFT, (LEGEND + AXIS) / height, RIGHT - LEFT, heights[1] / height))
            _draw_spreads(below, result, bars)
        figure.legend(loc="lower center", ncols=2, fontsize=9, frameon=False, borderaxespad=0.2)

    title = [*signal_sentence(signal, result.noise).split("; "), noise_sentence(result.noise)]
    room = heights[0] + AXIS + (heights[1] + AXIS if bars else 0.0) + LEGEND + 0.2
    return style.write_figure(path_stem, title, room, 0.02, draw)


def _rows(result: Result) -> tuple[list[Row], int]:
    """Return the schedules to show, cheapest first, and how many are left out."""
    found: list[Row] = []
    for entry in result.entries:
        if result.signal.seeds and entry.mean is not None:
            found.append((entry, entry.mean.mean, [loss for _, loss in entry.confirm]))
        elif not result.signal.seeds and entry.search_loss is not None:
            found.append((entry, entry.search_loss, [entry.search_loss]))
    placed = result.signal.placements.schedules if result.signal.placements else ()
    kept = {*placed, *(() if result.winner is None else (result.winner.schedule,))}
    found.sort(key=lambda row: (not row[0].names and row[0].schedule not in kept, row[1]))
    shown = sorted(found[:MAX_ROWS], key=lambda row: (row[0].cost, row[0].n_full, row[1]))
    return shown, len(found) - len(shown)


def _draw_rows(axes: Axes, result: Result, rows: Sequence[Row]) -> None:
    seeds = result.signal.seeds
    means = [mean for _, mean, _ in rows]
    singles = [loss for _, _, losses in rows for loss in losses]
    ends = [end for e, _, _ in rows if seeds and e.mean for end in (e.mean.low, e.mean.high) if end is not None]
    style.scale_axis(axes, "x", [*means, *singles] or [0.0, 1.0], ends)
    axes.set_ylim(max(2, len(rows)) - 0.4, -0.6)
    low, high = axes.get_xlim()
    floor = result.noise.floor
    if floor is not None and means:
        label = f"within {floor:.{decimals(floor)}f} nats of the lowest mean: noise on {result.noise.seeds} seeds"
        axes.axvspan(min(means), min(min(means) + floor, high), color=BAND, lw=0, zorder=0, label=label)
    looks = style.marker_styles(result.entries)
    for y, (entry, mean, losses) in enumerate(rows):
        marker, color = looks[entry.schedule]
        if seeds and entry.mean and entry.mean.low is not None and entry.mean.high is not None:
            ends = [max(entry.mean.low, low), min(entry.mean.high, high)]
            axes.plot(ends, [y, y], "|-", color=color, lw=1.2, ms=5, zorder=2)
        if seeds:
            axes.plot(losses, [y] * len(losses), "o", ms=3.2, color=GRAY, mew=0, zorder=3)
        size = 11 if marker == "*" else 6.5
        axes.plot([mean], [y], marker, ms=size, color=color, mec="white", mew=0.6, zorder=4)
        if result.winner is not None and entry.schedule == result.winner.schedule:
            ring: dict[str, Any] = {"ms": 13, "mfc": "none", "mec": VERMILION, "mew": 1.8, "zorder": 5}
            axes.plot([mean], [y], "o", label="winner", **ring)
    if len(seeds) > 1:
        label = f"mean over seeds, its {result.confidence:.0%} interval"
        axes.plot([], [], "|-", color=BLUE, lw=1.2, ms=5, label=label)
        axes.plot([], [], "o", ms=3.2, color=GRAY, mew=0, label="single seed")
    else:
        label = "loss at one fresh seed" if seeds else "loss at the search's one seed: fewer than two are confirmed"
        axes.plot([], [], "o", ms=6.5, color=BLUE, label=label if rows else "no trial is complete")
    names = [e.label if len(e.label) <= MAX_NAME else e.label[: MAX_NAME - 1] + "…" for e, _, _ in rows]
    labels = [f"{name}  {entry.cost:.3f}" for name, (entry, _, _) in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    placements = result.signal.placements
    if placements is not None:
        for (entry, _, _), tick in zip(rows, axes.get_yticklabels(), strict=True):
            tick.set_fontweight("bold" if entry.schedule in placements.schedules else "normal")
        axes.plot([], [], ls="", label=f"bold: the {len(placements.schedules)} placements of equal cost")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("validation loss (nats per token); the schedules by cost, all-full = 1")
    style.style_axes(axes)


def _draw_spreads(axes: Axes, result: Result, bars: Sequence[tuple[str, Spread]]) -> None:
    std = result.signal.seed_std
    unit, places = std or 1.0, decimals(std)
    widest = max(max(spread.nats, spread.noise_nats or 0.0) / unit for _, spread in bars)
    floor = None if result.noise.floor is None else result.noise.floor / unit
    axes.set_xlim(0, max(widest, floor or 0.0) * 1.06 or 1.0)
    axes.set_ylim(len(bars) - 0.3, -0.62)
    # Lines stand beside the bars only, so that they cross no text; each is named once.
    for y, (_, spread) in enumerate(bars):
        ends, first = [y - 0.1, y + 0.36], y == 0
        axes.barh(y + 0.13, spread.nats / unit, height=0.36, color=BLUE, zorder=2)
        if spread.noise_nats is not None:
            label = "the spread that noise alone makes, on average" if first else None
            axes.plot([spread.noise_nats / unit] * 2, ends, color=VERMILION, lw=2.4, zorder=3, label=label)
        if floor is not None:
            label = "the noise floor of a single difference" if first else None
            axes.plot([floor] * 2, ends, color=BLACK, ls=(0, (2, 1)), lw=1.3, zorder=4, label=label)
        note = axes.annotate(spread_text(spread, places), (0, y - 0.3), (4, 0), textcoords="offset points")
        note.set(fontsize=9, va="center", zorder=4)
        note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    kind = f", in seed standard deviations ({std:.2g} nats)" if std else " (nats); one seed, so the noise is unknown"
    axes.set_xlabel(f"highest minus lowest{kind}")
    style.style_axes(axes)
