"""A run folder becomes plain data, whatever its state."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from layersearch.config.selection import DEPTHS
from layersearch.errors import LayersearchError, RunFolderError
from layersearch.report import facts
from layersearch.report.answer import frontier_line
from layersearch.report.folder import expand, goes_on, open_run
from layersearch.report.payload import clean, page_data
from layersearch.report.schedules import last_keys
from layersearch.results.held_out import measure_rows
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import kv_cache_bytes
from layersearch.study.saved_run import load_records, load_result
from tests.helpers.hostile import ANSI

ROOT = Path(__file__).resolve().parents[2]
SELECTION = ROOT / "analysis" / "smollm2" / "run"
KILLED = ROOT / "tests" / "data_runs" / "killed"


@pytest.fixture(scope="module")
def selection() -> dict[str, Any]:
    """Return the data of a real selection."""
    return page_data([open_run(SELECTION)])["runs"][0]


@pytest.fixture(scope="module")
def search(saved_run: Path) -> dict[str, Any]:
    """Return the data of a finished search."""
    return page_data([open_run(saved_run)])["runs"][0]


def test_headline_of_a_selection_names_layers_cost_and_losses(selection: dict[str, Any]) -> None:
    rows = {row.schedule: row for row in measure_rows(load_records(SELECTION))}
    winner = load_result(SELECTION).winner
    assert winner is not None
    row = rows[winner.schedule]
    assert "4 of 30 layers: 7, 17, 18 and 23" in selection["headline"]
    assert f"{row.cost:.1%} of the attention FLOPs" in selection["headline"]
    assert row.accuracy is not None
    assert f"{row.accuracy.mean:.0%} of the hidden digits right (all-full: 86%)" in selection["headline"]
    assert f"{row.text_to_full.mean:+.3f}" in selection["headline"]


def test_points_equal_the_analysis_of_the_run(search: dict[str, Any], saved_run: Path) -> None:
    result, run = load_result(saved_run), open_run(saved_run)
    assert [search["schedules"][p["schedule"]]["text"] for p in search["points"]] == [
        str(e.schedule) for e in result.entries
    ]
    for point, entry in zip(search["points"], result.entries, strict=True):
        one, model = search["schedules"][point["schedule"]], run.recipe.model
        assert one["cost"] == pytest.approx(entry.cost, rel=1e-7)
        sizes = {"n_heads": model.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim}
        assert one["kv"] == kv_cache_bytes(entry.schedule, seq_len=run.recipe.training.seq_len, **sizes)
        mean = None if entry.mean is None else entry.mean.mean
        assert (point["loss"] or {}).get("mean") == (None if mean is None else pytest.approx(mean, rel=1e-7))
    winner = result.winner
    assert winner is not None
    assert search["schedules"][search["winner"]]["text"] == str(winner.schedule)


def test_frontier_of_two_points_says_what_was_measured_between_and_above() -> None:
    run = open_run(ROOT / "analysis" / "first_run")
    low, high = (run.result.entry(schedule) for schedule in run.result.frontier)
    confirmed = [entry.cost for entry in run.result.entries if entry.mean is not None]
    tried = sum(low.cost < entry.cost < high.cost for entry in run.result.entries)
    between, above = sum(low.cost < cost < high.cost for cost in confirmed), sum(cost > high.cost for cost in confirmed)
    assert low.mean is not None
    assert high.mean is not None
    said = frontier_line(run)
    assert said is not None
    assert f"from cost {low.cost:.3f} to {high.cost:.3f} gains {low.mean.mean - high.mean.mean:.2f}" in said
    assert between == 1
    assert "1 schedule of a cost between was confirmed, and does not lose less than the cheaper point" in said
    assert f"{tried - between} schedules of a cost between were tried and not confirmed" in said
    assert f"{above} schedules of a higher cost were confirmed, and none loses less" in said


def test_frontier_of_three_points_needs_no_reason(selection: dict[str, Any]) -> None:
    assert len(selection["frontier"]) > 2
    assert selection["frontier_line"] is None


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("full", [(0, 20)]),
        ("window:3+sink:2", [(0, 2), (17, 20)]),
        ("window:3/4", [(11, 12), (15, 16), (19, 20)]),
        ("block:8~3", [(13, 20)]),
    ],
)
def test_last_keys_of_a_span_are_the_ranges_that_the_last_query_sees(text: str, keys: list[tuple[int, int]]) -> None:
    assert last_keys(Span.parse(text), 20) == keys


def test_spans_of_a_schedule_give_back_its_text(selection: dict[str, Any]) -> None:
    for one in selection["schedules"]:
        spans = [selection["spans"][number]["text"] for number in one["layers"]]
        assert str(Schedule.parse(" ".join(spans))) == one["text"]


@pytest.mark.parametrize("name", ["selection", "search"])
def test_budget_table_keeps_to_each_budget_and_never_gets_worse(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    rows = run["budgets"]["rows"]
    assert [row["budget"] for row in rows] == sorted({row["budget"] for row in rows})
    assert len(rows) > 3
    means = {p["schedule"]: p["loss"]["mean"] for p in run["points"] if p["loss"]}
    for row in rows:
        for number in filter(lambda n: n is not None, (row["measured"], (row["proposal"] or {}).get("schedule"))):
            assert run["schedules"][number]["cost"] <= row["budget"] * (1 + 1e-7)
        assert row["measured"] is None or row["measured"] in means
    assert any(row["proposal"] for row in rows)


def test_budget_table_at_the_budget_of_the_run_has_its_winner(selection: dict[str, Any]) -> None:
    row = [row for row in selection["budgets"]["rows"] if row["budget"] <= selection["budget"]][-1]
    assert row["measured"] == selection["winner"]
    assert row["alike"] == 1  # none is shown to be as good


def test_needs_of_a_selection_are_the_gates_scores_of_full_over_the_best_sparse_span(selection: dict[str, Any]) -> None:
    scores = json.loads((SELECTION / "gates.json").read_text())["scores"]
    wanted = [min(sparse) - full for full, *sparse in scores]
    assert selection["needs"]["values"] == pytest.approx(wanted, rel=1e-6)


def test_selection_says_how_healed_models_rank_by_the_tables_of_the_study(selection: dict[str, Any]) -> None:
    (said,) = [line for line in selection["not_said"] if "No weight was trained" in line]
    tables = (ROOT / "analysis" / "smollm2" / "tables.md").read_text()
    longer = tables.split("## Before and after a longer healing", 1)[1].split("\n## ", 1)[0]
    found = dict(
        re.findall(r"^\| (loss \(text and answers\)|text|answers) \| (\S+ \(\S+ to \S+), n = 12\)", longer, re.M)
    )
    assert f"{found['text']}) for text loss" in said
    assert f"{found['answers']}) for answers" in said
    assert f"{found['loss (text and answers)']}) for both together" in said


def test_needs_of_a_search_are_one_number_a_layer_with_its_error(search: dict[str, Any]) -> None:
    assert len(search["needs"]["values"]) == search["n_layers"] == len(search["needs"]["errors"])


def test_killed_run_says_that_it_is_not_finished() -> None:
    run = page_data([open_run(KILLED)])["runs"][0]
    assert not run["finished"]
    assert run["headline"].startswith("No winner yet.")
    assert "8 records so far (8 complete)." in run["progress"]
    assert "The run is not finished. Its answer may change." in run["not_said"]


def test_run_before_its_first_trial_has_a_page(tmp_path: Path) -> None:
    shutil.copy(KILLED / "config.json", tmp_path)
    run = page_data([open_run(tmp_path)])["runs"][0]
    assert run["headline"] == "Nothing to conclude: no trial has completed."
    assert (run["points"], run["winner"], run["budgets"], run["progress"]) == (
        [],
        None,
        None,
        "No trial has finished yet.",
    )


def test_quick_page_predicts_nothing(saved_run: Path) -> None:
    run = page_data([open_run(saved_run)], quick=True)["runs"][0]
    assert run["needs"] is None
    assert all(row["proposal"] is None for row in run["budgets"]["rows"])


def test_command_of_a_shipped_recipe_makes_the_same_request() -> None:
    run = open_run(SELECTION)
    model = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert facts.command(run) == f"layersearch run --recipe pretrained --model {model} --budget 0.27 --seed 0"
    assert "--set" in facts.command(open_run(KILLED))  # an older recipe: what differs from the shipped one is set


def test_differences_name_the_keys_in_which_two_runs_differ(saved_run: Path) -> None:
    rows = facts.differences([facts.settings(open_run(run)) for run in (saved_run, SELECTION)])
    values = {row["key"]: row["values"] for row in rows}
    assert values["budget"] == ["0.6", "0.27"]
    assert values["recipe.training.seq_len"] == ["48", "1024"]
    assert "seed" not in values
    assert facts.differences([facts.settings(open_run(saved_run))] * 2) == []


def test_depths_of_a_selection_are_shares_by_length_and_depth_with_chance(
    selection: dict[str, Any], tmp_path: Path
) -> None:
    found, tasks = selection["depths"], selection["retrieval"]
    assert found["places"] == [[length, depth] for length in (256, 512, 1024) for depth in DEPTHS]
    assert [row["label"] for row in found["rows"]] == [row["label"] for row in tasks["rows"]]
    assert found["chance"] == pytest.approx(fmean(tasks["chance"]), abs=1e-6)
    for row, by_task in zip(found["rows"], tasks["rows"], strict=True):
        assert fmean(value["mean"] for value in row["values"][8:]) == pytest.approx(fmean(by_task["values"]), abs=1e-6)
        assert all(value["n"] == 12 for value in row["values"])
    run = Path(shutil.copytree(SELECTION, tmp_path / "run"))
    shares = {"512": {"10": {"pass_key": 0.25}}}  # example 10 asks for the pass key at depth 0.5
    (run / "retrieval_lengths.json").write_text(json.dumps({"full*30": shares}))
    found = page_data([open_run(run)])["runs"][0]["depths"]
    assert found["places"] == [[512, 0.5], *([1024, depth] for depth in DEPTHS)]
    by_label = {row["label"]: row["values"] for row in found["rows"]}
    assert by_label["all_full"][0] == {"mean": 0.25, "low": None, "high": None, "n": 1}
    assert by_label["winner"][0] is None


def test_clean_makes_control_characters_visible_and_numbers_finite() -> None:
    assert clean(ANSI) == "\\x1b[31mred\\x1b[0m\\x07\\x202eback\\x2028"
    assert clean({"a": [math.nan, math.inf, 1.23456789012]}) == {"a": [None, None, 1.2345679]}


def test_study_of_several_settings_stands_for_its_folders(tmp_path: Path) -> None:
    for name in ("length-64-depth-2", "length-128-depth-2"):
        shutil.copytree(KILLED, tmp_path / name)
    assert [path.name for path in expand([tmp_path])] == ["length-64-depth-2", "length-128-depth-2"]
    assert expand([KILLED]) == [KILLED]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("gates.json", '{"scores": [[1]]}'),
        ("gates.json", "{"),
        ("retrieval.json", '{"pass_key": 3}'),
        ("retrieval_lengths.json", '{"full*30": 3}'),
        ("trials.jsonl", "no record\n"),
        ("config.json", "[]"),
    ],
)
def test_damaged_file_is_refused_by_its_name(file: str, text: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(SELECTION, tmp_path / "run"))
    (run / file).write_text(text)
    with pytest.raises(LayersearchError, match=file):
        page_data([open_run(run)])


def test_goes_on_tells_a_held_folder_from_a_free_one(tmp_path: Path) -> None:
    assert not goes_on(tmp_path)
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert goes_on(tmp_path)
    assert not goes_on(tmp_path)


@pytest.mark.slow
def test_page_shows_the_healing_in_the_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(SELECTION, run)
    (run / "healed").mkdir()
    shutil.copy(SELECTION.parent / "records/heal-40-steps.jsonl", run / "healed/evaluations.jsonl")
    healed = page_data([open_run(run)])["runs"][0]["healed"]
    assert [(one["moment"], one["step"]) for one in healed] == [
        ("original", 0), ("switched", 0), ("training", 20), ("converted", 40),
    ]  # fmt: skip
    assert healed[-1]["loss"] == pytest.approx(1.984, abs=1e-3)
    (run / "healed/evaluations.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match=r"evaluations\.jsonl: damaged"):
        page_data([open_run(run)])
