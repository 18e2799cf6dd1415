"""The Pareto figure: validation loss against attention cost, what was confirmed, and what it may be compared with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.results.plots.style import (
    BLACK,
    BLUE,
    GREY,
    LOG_RATIO,
    VERMILION,
    plain,
    scale_losses,
    styles,
    write_figure,
)
from layersearch.results.result import ALL_FULL, Entry, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox, Transform

Line = tuple[list[float], list[float]]
"""Costs and losses of a line's corners."""

HEIGHT = 6.1
"""Without the title's lines, in inches."""
LEFT = 0.085
"""Where the axes begin, as a share of the width."""
DODGE = 6.5
"""Distance in points between confirmed schedules of the same cost, which would hide each other."""


def plot_pareto(result: Result, path_stem: Path | str) -> list[Path]:
    """Draw loss against cost and write it as PNG and SVG, both the same bytes for the same result and matplotlib.

    Trials that ended early are left out, since their loss is of fewer steps; the legend says how many they are.

    Args:
        result: of a run, finished or not.
        path_stem: the files' path without its suffix.

    Returns:
        The paths of the PNG and the SVG.

    Raises:
        OSError: if a file cannot be written.
    """
    first, *others = result.verdict.split(". ")
    title = [sentence.rstrip(".") + "." for sentence in (first, *others)]

    def draw(figure: Figure, top: float) -> None:
        axes = figure.add_subplot()
        figure.subplots_adjust(left=LEFT, right=0.985, bottom=1.12 / figure.get_figheight(), top=top)
        _draw(axes, result)

    return write_figure(path_stem, title, HEIGHT, LEFT, draw)


def _loss(entry: Entry) -> float:
    assert entry.loss is not None, "only entries with a loss are drawn"
    return entry.loss


def _draw(axes: Axes, result: Result) -> None:
    shown = [entry for entry in result.entries if entry.loss is not None]
    firm = [entry for entry in shown if entry.mean is not None or entry.names]
    dots = [entry for entry in shown if entry.mean is None and not entry.names]
    _scale(axes, result, shown)
    edge = axes.get_xlim()[1]
    axes.axvspan(result.budget, edge, color="#F3F3F3", zorder=0, lw=0)
    axes.axvline(result.budget, color=BLACK, ls=(0, (4, 3)), lw=1.1, zorder=1, label=f"budget {result.budget:g}")
    lines = []
    for entry in shown:
        if ALL_FULL in entry.names:
            axes.axhline(_loss(entry), color=BLACK, lw=0.8, ls=":", zorder=1, label=f"loss of {ALL_FULL}")
            lines.append((list(axes.get_xlim()), [_loss(entry)] * 2))
    if dots:
        axes.plot(
            [entry.cost for entry in dots],
            [_loss(entry) for entry in dots],
            "o",
            ms=5.5,
            color=GREY,
            alpha=0.6,
            mew=0,
            zorder=2,
            label="trained in the search, one seed",
        )
    if result.search_frontier:
        searched = [result.entry(text) for text in result.search_frontier]
        lines.append(_steps([(entry.cost, entry.search_loss or 0.0) for entry in searched], edge))
        only = result.frontier_of == "search"
        axes.plot(
            *lines[-1],
            color=BLUE if only else GREY,
            lw=1.9 if only else 1.1,
            zorder=3 if only else 2,
            label="frontier of the search, one seed",
        )
    if result.frontier_of == "confirm":
        lines.append(_steps([(entry.cost, _loss(entry)) for entry in map(result.entry, result.frontier)], edge))
        axes.plot(*lines[-1], color=BLUE, lw=1.9, zorder=3, label="frontier of the confirmed means")
    points = _firm(axes, result, firm)
    stopped = sum(entry.state == "stopped" and entry.loss is None for entry in result.entries)
    if stopped:
        axes.plot([], [], ls="", label=f"stopped early, not shown: {stopped}")
    if any(points[entry.schedule] is not axes.transData for entry in firm):
        axes.plot([], [], ls="", label="equal cost: side by side")
    axes.set_xlabel("attention cost (FLOPs, all-full = 1)")
    axes.set_ylabel("validation loss (nats per token)")
    plain(axes)
    axes.figure.legend(loc="lower center", ncols=3, fontsize=9, frameon=False, borderaxespad=0.2)
    _label(axes, result, shown, points, lines)


def _steps(points: Sequence[tuple[float, float]], edge: float) -> Line:
    """Return the corners of what a budget buys: each point's loss holds until the next one is affordable."""
    costs, losses = [points[0][0]], [points[0][1]]
    for cost, loss in points[1:]:
        costs += [cost, cost]
        losses += [losses[-1], loss]
    return [*costs, edge], [*losses, losses[-1]]


def _firm(axes: Axes, result: Result, entries: Sequence[Entry]) -> dict[str, Transform]:
    """Draw baselines and confirmed schedules with their intervals; return the transform that places each of them."""
    style = styles(result.entries)
    if any(entry.mean is not None for entry in entries):
        axes.plot([], [], "o-", color=BLUE, ms=7, lw=1.3, label=_confirmed_label(result))
    points = _dodge(axes, entries, None if result.winner is None else result.winner.schedule)
    for entry in entries:
        marker, colour = style[entry.schedule]
        x, y, place = [entry.cost], [_loss(entry)], points[entry.schedule]
        low, high = _bar(axes, entry)
        axes.plot(x * 2, [low, high], "_-", color=colour, lw=1.3, ms=6, alpha=0.85, zorder=4, transform=place)
        size = 13 if marker == "*" else 7.0
        axes.plot(x, y, marker, ms=size, color=colour, mec="white", mew=0.7, zorder=5, transform=place)
        if result.winner is not None and entry.schedule == result.winner.schedule:
            ring: dict[str, Any] = {"ms": 15, "mfc": "none", "mec": VERMILION, "mew": 2.2}
            axes.plot(x, y, "o", zorder=6, label="winner", transform=place, **ring)
    return points


def _confirmed_label(result: Result) -> str:
    seeds = sorted({entry.mean.n for entry in result.entries if entry.mean is not None})
    number = "–".join(str(n) for n in (seeds[:1] + seeds[1:][-1:]))
    return f"mean of {number} fresh seeds, {result.confidence:.0%} interval"


def _bar(axes: Axes, entry: Entry) -> tuple[float, float]:
    """Return the ends of an entry's interval, cut at the edges of the axes; twice its loss if it has none."""
    if entry.mean is None or entry.mean.low is None or entry.mean.high is None:
        return _loss(entry), _loss(entry)
    bottom, top = axes.get_ylim()
    return max(entry.mean.low, bottom), min(entry.mean.high, top)


def _dodge(axes: Axes, entries: Sequence[Entry], winner: str | None) -> dict[str, Transform]:
    """Shift entries whose markers or bars would cover each other to the left, never over the budget line.

    Returns:
        The transform from data to pixels for each schedule; plain ``transData`` where nothing is in the way.
    """
    from matplotlib.transforms import ScaledTranslation

    pixel = axes.figure.dpi / 72
    places: dict[str, Transform] = {}
    put: list[tuple[float, float, float]] = []
    for entry in sorted(entries, key=lambda entry: (entry.schedule != winner, entry.loss, entry.schedule)):
        x, y = axes.transData.transform((entry.cost, _loss(entry)))
        low, high = (axes.transData.transform((entry.cost, end))[1] for end in _bar(axes, entry))
        low, high = min(low, y - 5 * pixel), max(high, y + 5 * pixel)
        steps = 0
        while any(
            abs(x - steps * DODGE * pixel - other) < 0.9 * DODGE * pixel and low < above and below < high
            for other, below, above in put
        ):
            steps += 1
        put.append((x - steps * DODGE * pixel, low, high))
        shift = ScaledTranslation(-steps * DODGE / 72, 0, axes.figure.dpi_scale_trans)
        places[entry.schedule] = axes.transData + shift if steps else axes.transData
    return places


def _scale(axes: Axes, result: Result, shown: Sequence[Entry]) -> None:
    """Set limits and scales: every mean is inside, long intervals may be cut at the edge."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    costs = [entry.cost for entry in shown] + [result.budget, 1.0]
    losses = [_loss(entry) for entry in shown] or [0.0, 1.0]
    low, high = min(costs), max(costs)
    if high / low > LOG_RATIO:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.15)
        ticks = [
            m * 10.0**e for e in range(-6, 2) for m in (1, 1.5, 2, 3, 5, 7) if low / 1.15 <= m * 10.0**e <= high * 1.15
        ]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    ends = [end for entry in shown if entry.mean for end in (entry.mean.low, entry.mean.high) if end is not None]
    scale_losses(axes, "y", losses, ends)


def _label(
    axes: Axes, result: Result, shown: Sequence[Entry], points: Mapping[str, Transform], lines: Sequence[Line]
) -> None:
    """Name baselines and winner beside their points, each where it covers least of what is drawn."""
    from matplotlib.transforms import Bbox

    figure: Figure = axes.figure  # type: ignore[assignment]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    scale = figure.dpi / 72
    area = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    marks: list[Bbox] = []
    for entry in shown:
        place = points.get(entry.schedule, axes.transData)
        x, y = place.transform((entry.cost, _loss(entry)))
        marks.append(Bbox.from_extents(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale))
        if entry.schedule in points:
            low, high = (place.transform((entry.cost, end))[1] for end in _bar(axes, entry))
            marks.append(Bbox.from_extents(x - 3 * scale, low, x + 3 * scale, high))
    for xs, ys in [*lines, ([result.budget] * 2, list(axes.get_ylim()))]:
        corners = axes.transData.transform(list(zip(xs, ys, strict=True)))
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            marks.append(Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    winner = None if result.winner is None else result.winner.schedule
    named = [entry for entry in shown if entry.names or entry.schedule == winner]
    for entry in sorted(named, key=lambda entry: (entry.schedule != winner, -_loss(entry), entry.cost)):
        bold = entry.schedule == winner
        x, y = points[entry.schedule].transform((entry.cost, _loss(entry)))
        note = axes.annotate(
            ", ".join(entry.names) or "winner",
            (entry.cost, _loss(entry)),
            xytext=(0, 0),
            xycoords=points[entry.schedule],
            textcoords="offset points",
            fontsize=9,
            ha="center",
            va="center",
            color=VERMILION if bold else BLACK,
            fontweight="bold" if bold else "normal",
            zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": "#777777", "lw": 0.7, "shrinkA": 1, "shrinkB": 5},
        )
        box = note.get_window_extent(renderer)
        across, up, far = _place(box.width, box.height, (x, y), scale, taken, marks, area)
        note.set_position((across / scale, up / scale))
        put = Bbox.from_bounds(x + across - box.width / 2, y + up - box.height / 2, box.width, box.height)
        rivals = (
            tuple(points[other.schedule].transform((other.cost, _loss(other))))
            for other in shown
            if other.schedule in points and other is not entry
        )
        if note.arrow_patch is not None:
            own = _distance(put, (x, y))
            # A label as near to another marker as to its own needs a line to say whose it is.
            note.arrow_patch.set_visible(far or any(_distance(put, rival) < own + 4 * scale for rival in rivals))
        taken.append(put)


def _distance(box: Bbox, point: tuple[float, float]) -> float:
    """Return the distance between a point and the nearest point of a box, in pixels."""
    x, y = point
    return float(math.hypot(max(box.x0 - x, 0.0, x - box.x1), max(box.y0 - y, 0.0, y - box.y1)))


def _place(
    width: float,
    height: float,
    centre: tuple[float, float],
    scale: float,
    taken: Sequence[Bbox],
    marks: Sequence[Bbox],
    area: Bbox,
) -> tuple[float, float, bool]:
    """Return the offset of a label's centre from its point, in pixels, where it covers least, and whether it is far."""
    best, least = (0.0, 0.0, False), float("inf")
    for distance in (11.0, 18.0, 28.0, 40.0, 55.0, 75.0, 100.0):
        gap = distance * scale
        for across, up in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0.5), (1, -0.5)):
            x, y = across * (gap + width / 2), up * (gap + height / 2)
            left, bottom = centre[0] + x - width / 2, centre[1] + y - height / 2
            right, top = left + width, bottom + height
            cost = 0.25 * distance * scale
            if left < area.x0 or right > area.x1 or bottom < area.y0 or top > area.y1:
                cost += 1e6
            for weight, boxes in ((30.0, taken), (6.0, marks)):
                for box in boxes:
                    over_x = min(right + 3, box.x1) - max(left - 3, box.x0)
                    over_y = min(top + 1, box.y1) - max(bottom - 1, box.y0)
                    if over_x > 0 and over_y > 0:
                        cost += weight * (10 + min(over_x, over_y))
            if cost < least:
                best, least = (x, y, distance > 11.0), cost
    return best
