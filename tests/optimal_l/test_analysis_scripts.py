"""The study of l in analysis/: equal costs are equal, schedules fit their recipes, the report reads the records."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import layersearch
from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.training.record import Trial, blank_record

STUDY = Path(layersearch.__file__).parent.parent / "analysis" / "optimal_l"
if not STUDY.is_dir():
    pytest.skip("the study lies in a checkout only", allow_module_level=True)
sys.path.insert(0, str(STUDY))

import groups  # noqa: E402
import hops4  # noqa: E402
import jobs  # noqa: E402
import moved  # noqa: E402
import planted  # noqa: E402
import redraw  # noqa: E402
import report  # noqa: E402
import study  # noqa: E402

GROUPS = groups.groups()


@pytest.mark.parametrize("name", GROUPS)
def test_study_every_schedule_fits_its_recipe(name: str) -> None:
    group = GROUPS[name]
    recipe = group.loaded()
    assert group.base in group.lines
    for text in group.lines.values():
        schedule = Schedule.parse(text)
        assert len(schedule) == recipe.model.n_layers
        schedule.check(seq_len=recipe.training.seq_len, n_heads=recipe.model.n_heads)


@pytest.mark.parametrize("name", ["growing-windows", "block-or-window-alone", "block-or-window-below-full"])
def test_study_costs_called_equal_are_equal_to_the_last_pair(name: str) -> None:
    group = GROUPS[name]
    size = group.loaded()
    costs = [
        budget_ratio(Schedule.parse(text), seq_len=size.training.seq_len, n_heads=size.model.n_heads)
        for text in group.lines.values()
    ]
    equal = costs if name == "growing-windows" else costs[:2]
    assert len(set(equal)) == 1
    sizes = [span.size for span in Schedule.parse(list(group.lines.values())[1])]
    assert name != "growing-windows" or sizes == sorted(sizes)


def test_study_placements_of_a_dispute_cost_the_same() -> None:
    for name in report.DISPUTES:
        group = GROUPS[name]
        size = group.loaded()
        for l in (1, 2):
            texts = [text for label, text in group.lines.items() if f"({l})" in label] + group.placements(l)
            costs = {
                budget_ratio(Schedule.parse(t), seq_len=size.training.seq_len, n_heads=size.model.n_heads)
                for t in texts
            }
            assert len(costs) == 1


def test_study_factors_vary_as_far_as_they_should_and_share_the_rest() -> None:
    moves = groups.moves()
    assert max(moves["length-text"].values) == 8 * min(moves["length-text"].values)
    assert max(moves["depth-text"].values) == 3 * min(moves["depth-text"].values)
    base = {study.setting_of(moves["length-text"], 256), study.setting_of(moves["depth-text"], 6)}
    base |= {study.setting_of(moves["window-text"], 2), study.setting_of(moves["training-text"], 300)}
    assert len(base) == 1


def test_study_four_hops_fit_their_recipe() -> None:
    recipe = hops4.recipe_of(4)
    reach = 1 + recipe.model.n_layers  # windows of 2 pass on one token a layer
    assert reach <= recipe.data.distance
    assert {len(Schedule.parse(text)) for text in hops4.SCHEDULES} == {recipe.model.n_layers}


def test_study_four_hops_of_another_recipe_do_not_count(tmp_path: Path) -> None:
    lines = hops4.PATH.read_text().splitlines()
    held = hops4.done()
    assert len(held) == len(lines)
    path = tmp_path / "hops4.jsonl"
    path.write_text("\n".join([lines[0], lines[1].replace(json.loads(lines[1])["recipe"], "another")]))
    assert len(hops4.done(path)) == 1
    first = hops4.straight(hops4.SCHEDULES[0], 0)
    assert jobs.Records(hops4.STRAIGHT).get(first) is not None


@pytest.mark.slow
def test_redraw_committed_losses_give_the_same_answer(tmp_path: Path) -> None:
    losses = json.loads((STUDY / "redraw.json").read_text())
    assert len(losses) == 16  # every placement of four layers
    recipe = load_recipe("hops2")
    assert redraw.study(0, recipe, losses, tmp_path / "real") == 2
    flat = {text: [1.0] for text in losses}
    assert redraw.study(0, recipe, flat, tmp_path / "flat") == 0


def test_repetitions_of_each_rule_are_kept_apart(tmp_path: Path) -> None:
    def row(rule: int, number: int, l_star: int) -> str:
        fixed = {"task": "hops2", "recipe": jobs.fingerprint("hops2"), "known_l": 2, "low": 1, "l_star_all_full": 4}
        each = {"rule": rule, "repetition": number, "l_star": l_star, "trials": 50, "trial_seconds": 60}
        return json.dumps(fixed | each | {"bottom_less_best": {}})

    fresh = planted.MENDED_AT
    rows = [
        row(1, 0, 3),
        row(2, 0, 2),
        row(2, 1, 3),
        row(3, 0, 2),
        row(3, 1, 2),
        row(3, fresh, 2),
        row(3, fresh + 1, 3),
    ]
    path = tmp_path / "planted.jsonl"
    path.write_text("\n".join(rows))
    (line,) = [line for line in report.planted_section(path) if line.startswith("| `hops2`")]
    assert [cell.strip(" *") for cell in line.split("|")[3:8]] == ["0 of 1", "1 of 2", "2 of 2", "1 of 2", "4 of 4"]


@pytest.mark.slow
def test_report_is_made_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that grow are better by 0.1 nats, of a placement the upper one."""
    records = jobs.Records(tmp_path / "study.jsonl")

    def train(job: jobs.Job) -> None:
        recipe = jobs.recipe_of(job)
        spans = list(Schedule.parse(job.schedule))
        gain = sum(0.1 * at for at, span in enumerate(spans) if span.is_full)
        gain += 0.1 if 0 < (spans[0].size or 0) < (spans[-1].size or 0) else 0.0
        rng = np.random.default_rng([job.seed, *(span.size or 0 for span in spans)])
        loss, steps = 3.0 - gain + float(rng.normal(0, 0.002)), recipe.training.steps
        blank = blank_record(Trial(schedule=Schedule.parse(job.schedule), seed=job.seed), recipe)
        curve = tuple((steps * at // 8, loss + 0.1 * (8 - at)) for at in range(1, 9))
        records.add(job, replace(blank, state="complete", steps=steps, loss=loss, curve=curve))

    for name in ("growing-windows", "dispute-text-scratch", "dispute-text-converted"):
        for _ in range(3):  # two stages of selection, then what was chosen
            for job in GROUPS[name].jobs(records, range(3)):
                if records.get(job) is None:
                    train(job)
    group = GROUPS["dispute-text-scratch"]
    assert group.winner(1, records) == "window:2*5 full"
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "STUDY", tmp_path / "study.jsonl")
    monkeypatch.setattr(moved, "move_records", lambda: {})
    report.main()
    text = (tmp_path / "tables.md").read_text()
    assert "Lowest mean: growing (" in text
    assert "| text | 1 | bottom less top | +0.5" in text
    assert "Order along training" in text
    for name in ("dispute.png", "ranks.svg", "spans.png"):
        assert (tmp_path / name).stat().st_size > 1000
