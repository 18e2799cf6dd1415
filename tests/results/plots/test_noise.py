from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from layersearch.results.analyze import analyze
from layersearch.results.plots.noise import MAX_ROWS, plot_signal
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import a_run, confirmed, record

RUNS: dict[str, dict[str, float]] = {
    "few": {"n_schedules": 6},
    "many": {"n_schedules": 60, "finalists": 30},
    "huge gap": {"n_schedules": 30, "gap": 3.0, "base": 3.7},
    "tiny gap": {"n_schedules": 30, "gap": 0.004, "noise": 0.0008},
    "deep": {"n_schedules": 60, "layers": 24, "budget": 0.27, "finalists": 30},
    "searched": {"seeds": 0},
    "one seed": {"seeds": 1},
    "many seeds": {"seeds": 10},
}


def run(name: str) -> tuple[list[TrialRecord], float]:
    kwargs = {"budget": 0.5} | RUNS[name]
    return a_run(**kwargs), kwargs["budget"]  # type: ignore[arg-type]


def texts(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that gets every figure that is written."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        kept.append(figure)
        save(figure, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, "empty"])
def test_plot_signal_text_neither_overlaps_nor_leaves_the_figure(tmp_path: Path, name: str, figures: list[Any]) -> None:
    from matplotlib.text import Text

    plot_signal(analyze(*(([], 0.5) if name == "empty" else run(name))), tmp_path / "signal")
    figure = figures[0]
    figure.canvas.draw()
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    # Ticks beyond the limits are kept but not drawn.
    ticks = {id(t): axes for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    boxes = []
    for text in shown:
        box = text.get_window_extent()
        axes = ticks.get(id(text))
        if axes is not None:
            area = axes.get_window_extent()
            x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            if not (area.x0 <= x <= area.x1 or area.y0 <= y <= area.y1):
                continue
        boxes.append((text.get_text(), box))
    assert len(boxes) > 5
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or up <= 2, (first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_plot_signal_figure_names_what_it_shows(tmp_path: Path, name: str) -> None:
    result = analyze(*run(name))
    png, svg = plot_signal(result, tmp_path / "signal")
    assert (png.name, svg.name) == ("signal.png", "signal.svg")
    shown = texts(svg)
    found = result.signal
    assert found.placements is not None
    assert {f"{len(found.placements.schedules)} placements, l = {found.n_full}", "2 (all_sparse, all_full)"} <= set(
        shown
    )
    assert ("winner" in shown) == (result.winner is not None)
    said = " ".join(shown)
    for entry in result.entries:
        if entry.names:
            assert said.count(f"{entry.label}  {entry.cost:.3f}") == 1
    noise = "the spread that noise alone makes, on average"
    assert (noise in shown) == (len(found.seeds) > 1)
    assert ("nats of the lowest mean: noise on" in said) == (len(found.seeds) > 1)
    assert ("loss at the search's one seed" in said) == (not found.seeds)
    assert ("loss at one fresh seed" in said) == (len(found.seeds) == 1)


@pytest.mark.slow
def test_plot_signal_many_schedules_keeps_named_ones_and_placements(tmp_path: Path, figures: list[Any]) -> None:
    result = analyze(*run("deep"))
    measured = sum(entry.mean is not None for entry in result.entries)
    assert measured > MAX_ROWS
    _, svg = plot_signal(result, tmp_path / "signal")
    assert f"of higher loss, not shown: {measured - MAX_ROWS}" in texts(svg)
    assert result.signal.placements is not None
    labels = figures[0].axes[0].get_yticklabels()
    assert len(labels) == MAX_ROWS
    bold = [label.get_text() for label in labels if label.get_fontweight() == "bold"]
    assert len(bold) == len(result.signal.placements.schedules)
    assert all(label.endswith(f"{result.signal.cost:.3f}") for label in bold)


@pytest.mark.slow
def test_plot_signal_bars_marks_and_band_stand_at_measured_values(tmp_path: Path, figures: list[Any]) -> None:
    records = [
        *confirmed("full*4", [2.50, 2.61, 2.56], role="all_full"),
        *confirmed("window:32*4", [2.90, 3.00, 2.95], role="all_sparse"),
        *confirmed("full window:32*3", [2.60, 2.70, 2.63], role="bottom(1)"),
        *confirmed("window:32*3 full", [2.45, 2.55, 2.49], role="top(1)"),
        record("window:32 full window:32*2", 2.0),
    ]
    result = analyze(records, 0.5)
    plot_signal(result, tmp_path / "signal")
    above, below = figures[0].axes
    found, floor = result.signal, result.noise.floor
    assert found.placements is not None
    assert found.sparse_and_full is not None
    assert found.within_budget is not None
    assert found.seed_std is not None
    assert floor is not None
    spreads = (found.placements, found.sparse_and_full, found.within_budget)
    assert [bar.get_width() for bar in below.patches] == pytest.approx([s.seed_stds for s in spreads])
    marks = [line.get_xdata()[0] for line in below.lines]
    assert marks[::2] == pytest.approx([(s.noise_nats or 0.0) / found.seed_std for s in spreads])
    assert marks[1::2] == pytest.approx([floor / found.seed_std] * 3)
    (band,) = above.patches
    best = min(entry.mean.mean for entry in result.entries if entry.mean)
    assert (band.get_x(), band.get_width()) == (pytest.approx(best), pytest.approx(floor))
    # Cheapest first, from the top; the schedule that was not confirmed is not there.
    labels = [tick.get_text().split()[0] for tick in above.get_yticklabels()]
    assert labels == ["all_sparse", "top(1)", "bottom(1)", "all_full"]


@pytest.mark.slow
def test_plot_signal_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    result = analyze(*run("few"))
    first = [path.read_bytes() for path in plot_signal(result, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        second = [path.read_bytes() for path in plot_signal(result, tmp_path / "b")]
    assert first == second
