from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import pytest

from layersearch.results.analyze import analyze
from layersearch.results.plots.pareto import plot_pareto
from tests.helpers.synthetic import a_run, record

RUNS = {
    "few": {"n_schedules": 6},
    "many": {"n_schedules": 60},
    "huge gap": {"n_schedules": 30, "gap": 3.0, "base": 3.7},
    "tiny gap": {"n_schedules": 30, "gap": 0.004, "noise": 0.0008},
    "deep": {"n_schedules": 40, "layers": 24, "budget": 0.27},
    "searched": {"seeds": 0},
    "one seed": {"seeds": 1},
}


def texts(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_plot_pareto_writes_both_files_and_names_what_they_show(tmp_path: Path, name: str) -> None:
    kwargs = {"budget": 0.5} | RUNS[name]
    result = analyze(a_run(**kwargs), kwargs["budget"])  # type: ignore[arg-type]
    png, svg = plot_pareto(result, tmp_path / "pareto")
    assert (png.name, svg.name) == ("pareto.png", "pareto.svg")
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert 1000 <= width <= 1200
    assert 600 <= height <= 1000
    shown = texts(svg)
    baselines = [entry.label for entry in result.entries if entry.names]
    assert len(baselines) == 5
    assert [label for label in baselines if shown.count(label) != 1] == []
    assert {f"budget {kwargs['budget']:g}", "attention cost (FLOPs, all-full = 1)"} <= set(shown)
    assert ("winner" in shown) == (result.winner is not None)
    stopped = sum(entry.state == "stopped" for entry in result.entries)
    assert f"stopped early, not shown: {stopped}" in shown
    # The title is the verdict, whole.
    assert " ".join(result.verdict.split()) in " ".join(shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_plot_pareto_labels_cover_neither_each_other_nor_the_edge(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    kwargs = {"budget": 0.5} | RUNS[name]
    plot_pareto(analyze(a_run(**kwargs), kwargs["budget"]), tmp_path / "pareto")  # type: ignore[arg-type]
    axes = figures[0].axes[0]
    figures[0].canvas.draw()
    notes = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert len(notes) >= 5
    area = axes.get_window_extent()
    boxes = [note.get_bbox_patch().get_window_extent() for note in notes]  # type: ignore[union-attr]
    for number, box in enumerate(boxes):
        assert area.x0 <= box.x0 + 2
        assert box.x1 - 2 <= area.x1
        assert not any(
            min(box.x1, other.x1) - max(box.x0, other.x0) > 2 and min(box.y1, other.y1) - max(box.y0, other.y0) > 2
            for other in boxes[number + 1 :]
        )
    places = [note.xycoords.transform(note.xy) for note in notes]  # type: ignore[union-attr]
    for note, box, (x, y) in zip(notes, boxes, places, strict=True):
        to_points = [
            math.hypot(max(box.x0 - px, 0.0, px - box.x1), max(box.y0 - py, 0.0, py - box.y1)) for px, py in places
        ]
        own = math.hypot(max(box.x0 - x, 0.0, x - box.x1), max(box.y0 - y, 0.0, y - box.y1))
        lined = note.arrow_patch is not None and note.arrow_patch.get_visible()
        assert lined or own <= min(to_points), (
            f"{note.get_text()} stands at another's marker, without a line to its own"
        )


@pytest.mark.slow
def test_plot_pareto_same_result_gives_the_same_bytes_under_any_user_setting(tmp_path: Path) -> None:
    import matplotlib

    result = analyze(a_run(12), 0.5)
    first = [path.read_bytes() for path in plot_pareto(result, tmp_path / "a")]
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        second = [path.read_bytes() for path in plot_pareto(result, tmp_path / "b")]
    assert first == second
    assert dict(matplotlib.rcParams) == before
    assert b"dc:date" not in first[1]


def test_plot_pareto_stopped_trial_is_left_out(tmp_path: Path) -> None:
    done = [record("full*4", 2.0, role="all_full"), record("window:32*4", 2.5, role="all_sparse")]
    stopped = record("window:32*3 full", 1.0, state="stopped", steps=100)
    _, without = plot_pareto(analyze(done, 0.5), tmp_path / "without")
    _, with_one = plot_pareto(analyze([*done, stopped], 0.5), tmp_path / "with")

    def marks(svg: Path) -> int:
        return svg.read_text(encoding="utf-8").count("<use ")

    assert marks(with_one) == marks(without)
    assert "stopped early, not shown: 1" in texts(with_one)


def test_plot_pareto_empty_run_says_so(tmp_path: Path) -> None:
    _, svg = plot_pareto(analyze([], 0.5), tmp_path / "pareto")
    assert "Nothing to conclude: no trial has completed." in texts(svg)
