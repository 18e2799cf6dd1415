"""The figures of a study: loss against l, the effect of each layer, and l* against length and depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from layersearch.optimal_l import report
from layersearch.optimal_l.answer import BEST, OptimalL, PlacementResult, SettingAnswer, size_of
from layersearch.results.plots.style import BAND, BLACK, BLUE, GRAY, VERMILION, scale_axis, style_axes, write_figure

_STYLES = {
    "bottom": ("s", "#CC79A7"),
    "top": ("^", "#009E73"),
    "interleaved": ("D", "#B8860B"),
    "middle": ("v", "#56B4E9"),
    BEST: ("o", BLUE),
}
_CELL = 0.46  # side of a heat map cell, inches
_MAX_NUMBERED = 12  # maximum number of layers at which each cell shows its number


def draw_setting(found: SettingAnswer, out: Path) -> list[Path]:
    """Draw the figures of one setting into its folder; return their paths. Raises OSError if one cannot be written."""
    paths = draw_curve(found, out / "loss_by_l")
    if any(value is not None for value in (*found.effects.restore, *found.effects.remove)):
        paths += draw_layers(found, out / "layers")
    return paths


def draw_curve(found: SettingAnswer, path_stem: Path) -> list[Path]:
    """Draw loss against l: for each placement a line with a band of 95% confidence intervals."""

    def draw(figure: Figure, top: float) -> None:
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.085, right=0.985, bottom=1.05 / figure.get_figheight(), top=top)
        _draw_curve(axes, found)
        figure.legend(loc="lower center", ncols=4, fontsize=9, frameon=False, borderaxespad=0.2)

    reference = found.l_star.reference
    title = [
        report.l_star(found.l_star, f"the best schedule found (l = {reference.n_full})"),
        report.choice(found.knee, "Knee of loss against cost"),
        f"{found.n_layers} layers, {found.seq_len} tokens, {found.regime}; layers that are not full: {found.span}; "
        f"{found.fresh_seeds} fresh seeds, more where l* was undecided.",
    ]
    return write_figure(path_stem, title, 5.0, 0.085, draw)


def _draw_curve(axes: Axes, found: SettingAnswer) -> None:
    lines: dict[str, list[tuple[int, PlacementResult]]] = {}
    for row in found.curve:
        for placed in row.placements:
            for name in placed.name.split(" = "):
                lines.setdefault(name, []).append((row.l, placed))
        for name in _STYLES if row.l in (0, found.n_layers) else ():  # the ends belong to every placement
            if name != BEST:
                lines.setdefault(name, []).append((row.l, row.placements[0]))
    lines = {name: points for name, points in lines.items() if len({l for l, _ in points} - {0, found.n_layers})}
    if not lines:
        lines = {BEST: [(row.l, row.placements[0]) for row in found.curve]}
    drawn = [placed.loss for points in lines.values() for _, placed in points]
    ends = [end for loss in drawn for end in (loss.low, loss.high) if end is not None]
    scale_axis(axes, "y", [loss.mean for loss in drawn] or [0.0, 1.0], ends)
    low, high = axes.get_ylim()
    reference = next(
        (row.placements[0].loss.mean for row in found.curve if row.schedule == found.l_star.reference), None
    )
    if reference is not None:
        what = f"within delta ({found.delta:g} nats) of the best found"
        axes.axhspan(max(low, reference), min(high, reference + found.delta), color=BAND, lw=0, zorder=0, label=what)
    for name in sorted(lines, key=lambda name: name == BEST):
        marker, color = _STYLES[name]
        points = sorted(((l, placed.loss) for l, placed in lines[name]), key=lambda point: point[0])
        ls, means = [l for l, _ in points], [loss.mean for _, loss in points]
        lows = [max(low, loss.mean if loss.low is None else loss.low) for _, loss in points]
        highs = [min(high, loss.mean if loss.high is None else loss.high) for _, loss in points]
        axes.fill_between(ls, lows, highs, color=color, alpha=0.18 if name == BEST else 0.07, lw=0, zorder=1)
        width = 2.2 if name == BEST else 1.3
        axes.plot(ls, means, marker + "-", color=color, lw=width, ms=6, mec="white", mew=0.6, zorder=3, label=name)
    star = found.l_star
    text = f"l* = {star.value}" if star.decided else f"l*: {star.low} to {star.value}"
    axes.axvline(star.value, color=VERMILION, lw=1.4, ls=(0, (4, 3)), zorder=2, label=text)
    if not star.decided:
        axes.axvspan(star.low, star.value, color=VERMILION, alpha=0.07, lw=0, zorder=0)
    axes.plot([], [], color=GRAY, lw=7, alpha=0.4, label="95% intervals of the means")
    axes.set_xlim(-0.3, found.n_layers + 0.3)
    axes.set_xticks([row.l for row in found.curve])
    axes.set_xlabel("l, full layers")
    axes.set_ylabel("validation loss (nats per token)")
    style_axes(axes)


def draw_layers(found: SettingAnswer, path_stem: Path) -> list[Path]:
    """Draw the effect of full attention in each layer: restored, removed, and in pairs."""
    n = found.n_layers
    side = min(4.0, max(2.7, _CELL * n))

    def draw(figure: Figure, top: float) -> None:
        tall, wide, low = figure.get_figheight(), figure.get_figwidth(), 0.55
        effects = found.effects
        rows = max(0.9, 2 * side / n)  # height of the two single rows, inches
        left = figure.add_axes((0.8 / wide, (low + side - rows) / tall, side / wide, rows / tall))
        right = figure.add_axes((5.4 / wide, low / tall, side / wide, side / tall))
        singles = np.array([effects.restore, effects.remove], dtype=np.float64)  # None becomes NaN
        above, below = np.array(effects.pairs, dtype=np.float64), np.array(effects.interaction, dtype=np.float64)
        pairs = np.where(np.tri(n, dtype=bool), below, above)  # None is NaN in both; the diagonal of `below` too
        _heat(figure, left, singles, "one layer (nats)")
        left.set_yticks([0, 1], ["restore", "remove"])
        _heat(figure, right, pairs, "two layers (nats)")
        right.set_yticks(range(n))
        right.set_ylabel("layer")
        for axes in (left, right):
            axes.set_xticks(range(n))
            axes.set_xlabel("layer, 0 at the bottom")
            axes.tick_params(length=0)
        del top

    title = [
        report.layers(found) or "Effect of full attention in each layer, on one seed.",
        f"One layer. Restore: decrease of the loss from all-sparse ({found.span}) with that layer alone full. "
        "Remove: increase of the loss from all-full with that layer alone sparse.",
        "Two layers. Above the diagonal: decrease of the loss from all-sparse with both full. Below the diagonal: "
        "their interaction, this decrease minus both single ones; positive: they need each other. Gray: not trained.",
    ]
    return write_figure(path_stem, title, side + 1.0, 0.02, draw)


def _heat(figure: Figure, axes: Axes, values: np.ndarray, name: str) -> None:
    reach = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    image = axes.imshow(values, cmap="PuOr", vmin=-reach or -1.0, vmax=reach or 1.0, aspect="auto")
    axes.set_facecolor("#D5D5D5")
    if values.shape[1] <= _MAX_NUMBERED:
        size = 8 if values.shape[1] <= 8 else 6
        places = min(4, max(0, 1 - int(np.floor(np.log10(reach or 1.0)))))
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if abs(value) > 0.6 * reach else BLACK
                axes.text(j, i, f"{value:.{places}f}", ha="center", va="center", fontsize=size, color=color)
    axes.set_title(name, fontsize=9)
    place = axes.get_position()
    wide = figure.get_figwidth()
    bar = figure.colorbar(image, cax=figure.add_axes((place.x1 + 0.1 / wide, place.y0, 0.12 / wide, place.height)))
    bar.ax.tick_params(labelsize=8)


def draw_l_star(found: OptimalL, path_stem: Path) -> list[Path]:
    """Draw l* against length and depth with its confidence sets and the scaling laws."""
    groups: list[tuple[str, list[SettingAnswer]]] = []
    for name in ("length", "depth"):
        other = "depth" if name == "length" else "length"
        held: dict[int, list[SettingAnswer]] = {}
        for one in found.settings:
            held.setdefault(size_of(one, other), []).append(one)
        most = max(held.values(), key=len)
        if len(most) > 1:
            groups.append((name, most))

    def draw(figure: Figure, top: float) -> None:
        for number, (name, answers) in enumerate(groups):
            axes = figure.add_subplot(1, len(groups), number + 1)
            _draw_star(figure, axes, name, answers, found)
        # Both panels share one legend; a law may be fitted in one of them only.
        drawn = {
            label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(drawn.values(), drawn.keys(), loc="lower center", ncols=4, fontsize=9, frameon=False)
        figure.subplots_adjust(left=0.07, right=0.985, bottom=0.9 / figure.get_figheight(), top=top, wspace=0.18)

    laws = [line for name, answers in groups for line in report.law(name, found.laws.get(name, ()), len(answers))]
    return write_figure(path_stem, ["l* by size. Bars: 95% confidence sets.", *laws], 4.0, 0.07, draw)


def draw_stars(figure: Figure, axes: Axes, sizes: Sequence[int], answers: Sequence[SettingAnswer]) -> None:
    """Draw l* by size with its confidence sets: against the best found and, beside it, against all-full."""
    axes.set_xscale("log", base=2)
    aside = axes.transData + ScaledTranslation(9 / 72, 0, figure.dpi_scale_trans)
    best, full = [one.l_star for one in answers], [one.l_star_all_full for one in answers]
    kinds = (
        (best, BLUE, "o", 8, axes.transData, "l*, against the best found"),
        (full, VERMILION, "s", 6, aside, "l*, against all-full"),
    )
    for stars, color, marker, big, place, label in kinds:
        for size, star in zip(sizes, stars, strict=True):
            axes.plot([size] * 2, [star.low, star.value], "_-", color=color, lw=1.5, ms=8, zorder=3, transform=place)
        values = [star.value for star in stars]
        axes.plot(sizes, values, marker, color=color, ms=big, mec="white", label=label, zorder=4, transform=place)
    axes.set_ylim(-0.5, max(*(star.value for star in (*best, *full)), 1) + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    room = (sizes[-1] / sizes[0]) ** 0.12
    axes.set_xlim(sizes[0] / room, sizes[-1] * room)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    style_axes(axes)


def _draw_star(figure: Figure, axes: Axes, name: str, answers: Sequence[SettingAnswer], found: OptimalL) -> None:
    answers = sorted(answers, key=lambda one: size_of(one, name))
    sizes = [size_of(one, name) for one in answers]
    draw_stars(figure, axes, sizes, answers)
    grid = np.geomspace(sizes[0], sizes[-1], 60)
    for law, style in zip(found.laws.get(name, ()), ("-", "--"), strict=False):
        axes.plot(grid, [law.at(float(size)) for size in grid], style, color=GRAY, lw=1.4, label=law.form, zorder=2)
    axes.set_xlabel("sequence length (tokens)" if name == "length" else "depth (layers)")
    axes.set_ylabel("l* (full layers)")
