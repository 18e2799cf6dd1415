from __future__ import annotations

import re

import pytest
from synthetic import a_run, confirmed, record

from layersearch.report import show
from layersearch.result import analyse

META = {"run": "runs/first", "recipe": "laptop", "seconds": 512}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"n_schedules": 6},
        {"n_schedules": 60, "finalists": 12},
        {"n_schedules": 80, "layers": 24, "budget": 0.27, "finalists": 30, "noise": 0.05},
        {"n_schedules": 200, "layers": 32, "budget": 0.9, "finalists": 60},
        {"seeds": 0},
        {"seeds": 1},
        {"gap": 3.0, "base": 3.7},
    ],
)
def test_the_report_is_one_plain_screen(kwargs: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    budget = kwargs.get("budget", 0.5)
    result = analyse(a_run(**kwargs), budget)  # type: ignore[arg-type]
    show(result, META)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in out
    assert lines[0] == "run runs/first · recipe laptop · seconds 512"
    assert " ".join(result.verdict.split()) in " ".join(out.split())
    assert ("Winner: " in out) == (result.winner is not None)
    assert "Rank agreement" in out
    for heading in ("Frontier (", "Baselines", "Loss against l, the number of full layers"):
        assert heading in out


def test_the_tables_hold_the_numbers_and_align_them(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        *confirmed("full*4", [2.50, 2.60, 2.55], role="all_full"),
        *confirmed("window:32*4", [2.900, 3.001, 2.949], role="all_sparse"),
        *confirmed("window:32 full window:32*2", [2.400, 2.501, 2.449]),
        record("window:32*3 full", 3.3, state="stopped", steps=100, role="top(1)"),
    ]
    show(analyse(records, 0.5), {})
    out = capsys.readouterr().out
    assert re.search(r"^\* window:32 full window:32\*2 +1 +0\.340 +2\.45 +0\.13 +3$", out, re.MULTILINE)
    assert re.search(r"^  window:32\*4  \(all_sparse\) +0 +0\.120 +2\.95 +0\.13 +3$", out, re.MULTILINE)
    # The loss at a rung is no loss of the trial: the state stands in its place.
    assert re.search(r"^  top\(1\) +0\.340 +stopped +0 ", out, re.MULTILINE)
    assert "3.3" not in out
    assert "Differences under 0.00" in out
    assert "nats are noise here (3 seeds)" in out
    frontier = out[out.index("Frontier") : out.index("Baselines")].rstrip().splitlines()[1:]
    assert len({len(line.rstrip()) for line in frontier}) == 1


def test_a_cut_table_says_how_much_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    records = []
    for full in range(31):
        text = " ".join(["full"] * full + ["window:32"] * (30 - full))
        records.append(record(text, 3.0 - full / 100, role=f"bottom({full})"))
    show(analyse(records, 1.0), {})
    out = capsys.readouterr().out
    shown = int(re.search(r"and (\d+) cheaper ones in frontier.json", out)[1])  # type: ignore[index]
    frontier = out[out.index("Frontier") : out.index("  and ")].splitlines()[2:]
    assert len(frontier) + shown == 31
    assert len(out.splitlines()) <= 40
    assert re.search(r"and \d+ more", out)


def test_a_run_without_a_result_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    show(analyse([record("full*2", None, state="failed", role="all_full")], 0.5), {})
    out = capsys.readouterr().out
    assert "Nothing to conclude: no trial has completed." in out
    assert "Failed trials: 1" in out
    assert "Noise: unknown" in out


def test_a_perfect_order_has_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        record(f"window:{size}*4", size / 10, curve=((100, size / 5), (400, size / 10))) for size in range(8, 13)
    ]
    show(analyse(records, 0.5), {})
    assert re.search(r"step 100 of 400 → last step +1\.00 +no bound +1\.00 +no bound +5", capsys.readouterr().out)
