"""The Pareto figure: validation loss against attention cost, confirmed schedules, baselines and frontiers."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import pts_to_poststep
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, BboxBase, ScaledTranslation, Transform
from numpy.typing import NDArray

from layersearch.results.plots import style
from layersearch.results.plots.style import BLACK, BLUE, GRAY, VERMILION
from layersearch.results.result import ALL_FULL, Entry, Result, not_none
from layersearch.schedule import Schedule

Array = NDArray[np.float64]
Line = tuple[list[float], list[float]]  # costs and losses of a line's corners

HEIGHT = 6.1  # height without the title, inches
LEFT = 0.085  # left end of the axes, as a share of the width
DODGE = 6.5  # distance between confirmed schedules of equal cost, which would hide each other, points
_DISTANCES = (11.0, 18.0, 28.0, 40.0, 55.0, 75.0, 100.0)  # distances of a label from its marker to try, points
_DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0.5), (1, -0.5))


def plot_pareto(result: Result, path_stem: Path | str) -> list[Path]:
    """Draw loss against cost as PNG and SVG, byte-identical for the same result and matplotlib.

    Stopped trials are left out, since losses at fewer steps are not comparable; the legend gives their number. Path,
    result and errors are those of `write_figure`.
    """
    title = [sentence.rstrip(".") + "." for sentence in result.verdict.split(". ")]

    def draw(figure: Figure, top: float) -> None:
        axes = figure.add_subplot()
        figure.subplots_adjust(left=LEFT, right=0.985, bottom=1.12 / figure.get_figheight(), top=top)
        _draw(axes, result)

    return style.write_figure(path_stem, title, HEIGHT, LEFT, draw)


def _loss(entry: Entry) -> float:
    return not_none(entry.loss)


def _winner(result: Result) -> Schedule | None:
    return None if result.winner is None else result.winner.schedule


def _draw(axes: Axes, result: Result) -> None:
    shown = [entry for entry in result.entries if entry.loss is not None]
    named = [entry for entry in shown if entry.mean is not None or entry.names]
    dots = [entry for entry in shown if entry.mean is None and not entry.names]
    style.scale_axis(axes, "x", [*(entry.cost for entry in shown), result.budget, 1.0])
    ends = [end for entry in shown if entry.mean for end in (entry.mean.low, entry.mean.high) if end is not None]
    style.scale_axis(axes, "y", [_loss(entry) for entry in shown] or [0.0, 1.0], ends)
    edge = axes.get_xlim()[1]
    axes.axvspan(result.budget, edge, color="#F3F3F3", zorder=0, lw=0)
    axes.axvline(result.budget, color=BLACK, ls=(0, (4, 3)), lw=1.1, zorder=1, label=f"budget {result.budget:g}")
    lines: list[Line] = [([result.budget] * 2, list(axes.get_ylim()))]
    for entry in shown:
        if ALL_FULL in entry.names:
            axes.axhline(_loss(entry), color=BLACK, lw=0.8, ls=":", zorder=1, label=f"loss of {ALL_FULL}")
            lines.append((list(axes.get_xlim()), [_loss(entry)] * 2))
    if dots:
        look: dict[str, Any] = {"ms": 5.5, "color": GRAY, "alpha": 0.6, "mew": 0, "zorder": 2}
        costs, losses = [entry.cost for entry in dots], [_loss(entry) for entry in dots]
        axes.plot(costs, losses, "o", label="trained in the search, one seed", **look)
    strong, weak = {"color": BLUE, "lw": 1.9, "zorder": 3}, {"color": GRAY, "lw": 1.1, "zorder": 2}
    confirmed = result.frontier_of == "confirm"
    if result.search_frontier:
        searched = [result.entry(schedule) for schedule in result.search_frontier]
        lines.append(_steps([(entry.cost, not_none(entry.search_loss)) for entry in searched], edge))
        axes.plot(*lines[-1], label="frontier of the search, one seed", **(weak if confirmed else strong))  # type: ignore[arg-type]
    if confirmed:
        lines.append(_steps([(entry.cost, _loss(entry)) for entry in map(result.entry, result.frontier)], edge))
        axes.plot(*lines[-1], label="frontier of the confirmed means", **strong)  # type: ignore[arg-type]
    transforms = _draw_named(axes, result, named)
    stopped = sum(entry.state == "stopped" and entry.loss is None for entry in result.entries)
    if stopped:
        axes.plot([], [], ls="", label=f"stopped early, not shown: {stopped}")
    if any(transforms[entry.schedule] is not axes.transData for entry in named):
        axes.plot([], [], ls="", label="equal cost: side by side")
    axes.set_xlabel("attention cost (FLOPs, all-full = 1)")
    axes.set_ylabel("validation loss (nats per token)")
    style.style_axes(axes)
    axes.figure.legend(loc="lower center", ncols=3, fontsize=9, frameon=False, borderaxespad=0.2)
    _label(axes, result, shown, transforms, lines)


def _steps(points: Sequence[tuple[float, float]], edge: float) -> Line:
    """Return the corners of a frontier: each point's loss holds until the next point's cost."""
    costs, losses = zip(*points, (edge, points[-1][1]), strict=True)
    xs, ys = pts_to_poststep(costs, losses).tolist()
    return xs, ys


def _draw_named(axes: Axes, result: Result, entries: Sequence[Entry]) -> dict[Schedule, Transform]:
    """Draw baselines and confirmed schedules with their intervals; return the transform that places each of them."""
    styles, winner = style.marker_styles(result.entries), _winner(result)
    seeds = sorted({entry.mean.n for entry in entries if entry.mean is not None})
    if seeds:
        number = "–".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
        label = f"mean of {number} fresh seeds, {result.confidence:.0%} interval"
        axes.plot([], [], "o-", color=BLUE, ms=7, lw=1.3, label=label)
    transforms = _dodge(axes, entries, winner)
    for entry in entries:
        marker, color = styles[entry.schedule]
        x, y, place = [entry.cost], [_loss(entry)], transforms[entry.schedule]
        axes.plot(x * 2, _bar(axes, entry), "_-", color=color, lw=1.3, ms=6, alpha=0.85, zorder=4, transform=place)
        size = 13 if marker == "*" else 7.0
        axes.plot(x, y, marker, ms=size, color=color, mec="white", mew=0.7, zorder=5, transform=place)
        if entry.schedule == winner:
            ring: dict[str, Any] = {"ms": 15, "mfc": "none", "mec": VERMILION, "mew": 2.2}
            axes.plot(x, y, "o", zorder=6, label="winner", transform=place, **ring)
    return transforms


def _bar(axes: Axes, entry: Entry) -> tuple[float, float]:
    """Return the ends of an entry's interval, cut at the edges of the axes; twice its loss if it has none."""
    if entry.mean is None or entry.mean.low is None or entry.mean.high is None:
        return _loss(entry), _loss(entry)
    bottom, top = axes.get_ylim()
    return max(entry.mean.low, bottom), min(entry.mean.high, top)


def _pixels(axes: Axes, entry: Entry, place: Transform) -> list[list[float]]:
    """Return the pixels (x, y) of an entry's marker and of both ends of its interval."""
    return place.transform([(entry.cost, y) for y in (_loss(entry), *_bar(axes, entry))]).tolist()


def _dodge(axes: Axes, entries: Sequence[Entry], winner: Schedule | None) -> dict[Schedule, Transform]:
    """Shift entries with overlapping markers or bars to the left, never over the budget line.

    The transforms are from data to pixels; ``transData`` itself without an overlap.
    """
    pixel = axes.figure.dpi / 72
    transforms: dict[Schedule, Transform] = {}
    placed: list[tuple[float, float, float]] = []
    for entry in sorted(entries, key=lambda entry: (entry.schedule != winner, entry.loss, entry.schedule)):
        (x, y), (_, low), (_, high) = _pixels(axes, entry, axes.transData)
        low, high, steps = min(low, y - 5 * pixel), max(high, y + 5 * pixel), 0
        while any(
            abs(x - steps * DODGE * pixel - other) < 0.9 * DODGE * pixel and low < above and below < high
            for other, below, above in placed
        ):
            steps += 1
        placed.append((x - steps * DODGE * pixel, low, high))
        shift = ScaledTranslation(-steps * DODGE / 72, 0, axes.figure.dpi_scale_trans)
        transforms[entry.schedule] = axes.transData + shift if steps else axes.transData
    return transforms


def _label(
    axes: Axes, result: Result, shown: Sequence[Entry], transforms: dict[Schedule, Transform], lines: Sequence[Line]
) -> None:
    """Name baselines and winner beside their markers, where they cover least; boxes and markers are in pixels."""
    scale, winner = axes.figure.dpi / 72, _winner(result)
    boxes, labels, markers = [], list[Bbox](), {}
    dots = [(entry.cost, _loss(entry)) for entry in shown if entry.schedule not in transforms]
    centers = axes.transData.transform(np.reshape(dots, (-1, 2)))
    for entry in (one for one in shown if one.schedule in transforms):
        (x, y), (_, low), (_, high) = _pixels(axes, entry, transforms[entry.schedule])
        centers = np.vstack([centers, (x, y)])
        boxes.append(Bbox.from_extents(x, low, x, high).padded(3 * scale, 0))
        markers[entry.schedule] = np.array((x, y))
    for line in lines:
        boxes += [
            Bbox(np.sort(ends, axis=0)).padded(1)
            for ends in itertools.pairwise(axes.transData.transform(np.transpose(line)))
        ]
    held = np.array([box.extents for box in boxes]).reshape(-1, 4)
    covered = np.vstack([held, np.hstack([centers - 5 * scale, centers + 5 * scale])])
    named = [entry for entry in shown if entry.names or entry.schedule == winner]
    for entry in sorted(named, key=lambda entry: (entry.schedule != winner, -_loss(entry), entry.cost)):
        bold = entry.schedule == winner
        label, at = ", ".join(entry.names) or "winner", (entry.cost, _loss(entry))
        box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
        arrow: dict[str, Any] = {"arrowstyle": "-", "color": "#777777", "lw": 0.7, "shrinkA": 1, "shrinkB": 5}
        note = axes.annotate(
            label, at, (0, 0), transforms[entry.schedule], "offset points", arrow, bbox=box, ha="center", va="center"
        )
        note.set(fontsize=9, color=VERMILION if bold else BLACK, fontweight="bold" if bold else "normal", zorder=7)
        marker, size = markers[entry.schedule], np.array(note.get_window_extent().size)
        middles = [marker + np.array(way) * (far * scale + size / 2) for far in _DISTANCES for way in _DIRECTIONS]
        places = [Bbox((middle - size / 2, middle + size / 2)) for middle in middles]
        labels.append(min(places, key=lambda box: _cost(box, axes.bbox, labels, covered)))
        note.set_position(tuple((labels[-1].get_points().mean(axis=0) - marker) / scale))


def _cost(box: Bbox, area: BboxBase, labels: Sequence[Bbox], covered: Array) -> tuple[bool, int, int]:
    """Return what is wrong with a label's box, the worst first: outside the axes, on other labels, on the rest.

    ``covered`` holds the extents (left, bottom, right, top) of the rest: thousands of markers.
    """
    left, bottom, right, top = box.padded(2).extents
    over = (covered[:, 0] < right) & (covered[:, 2] > left) & (covered[:, 1] < top) & (covered[:, 3] > bottom)
    return area.count_contains(box.corners()) < 4, box.count_overlaps(labels), int(over.sum())
