from __future__ import annotations

import re
from dataclasses import replace

import pytest

from layersearch.cli.summary import print_result
from layersearch.results.analyze import analyze
from layersearch.results.stats import t_test_power
from layersearch.schedule import Schedule
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import a_run, confirmed, record

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
def test_summary_is_one_plain_screen(kwargs: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    budget = kwargs.get("budget", 0.5)
    records = [
        replace(r, loss_by_position=(3.0, 2.0), position_edges=(64, 128), metrics=(("recall_accuracy", 0.5),))
        for r in a_run(**kwargs)  # type: ignore[arg-type]
    ]
    result = analyze(records, budget)
    print_result(result, META)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in out
    assert lines[0] == "run runs/first · recipe laptop · seconds 512"
    assert " ".join(result.verdict.split()) in " ".join(out.split())
    assert ("Winner: " in out) == (result.winner is not None)
    assert "Rank correlation" in out
    for heading in (
        "By position: ",
        "Signal",
        "recall accuracy",
        "Frontier (",
        "Baselines",
        "Loss against l, the number of full layers",
    ):
        assert heading in out


def test_summary_tables_hold_the_numbers_and_align_them(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        *confirmed("full*4", [2.50, 2.60, 2.55], role="all_full"),
        *confirmed("window:32*4", [2.900, 3.001, 2.949], role="all_sparse"),
        *confirmed("window:32 full window:32*2", [2.400, 2.501, 2.449]),
        record("window:32*3 full", 3.3, state="stopped", steps=100, role="top(1)"),
    ]
    print_result(analyze(records, 0.5), {})
    out = capsys.readouterr().out
    # Its interval allows for the choice of one of two.
    assert re.search(r"^\* window:32 full window:32\*2 +1 +0\.340 +2\.45 +0\.16 +3$", out, re.MULTILINE)
    assert re.search(r"^  window:32\*4  \(all_sparse\) +0 +0\.120 +2\.95 +0\.13 +3$", out, re.MULTILINE)
    # The loss at a rung is no loss of the trial: the state stands in its place.
    assert re.search(r"^  top\(1\) +0\.340 +stopped +0 ", out, re.MULTILINE)
    assert "3.3" not in out
    assert "two schedules of average noise differ significantly from 0.00" in " ".join(out.split())
    frontier = out[out.index("Frontier") : out.index("Baselines")].rstrip().splitlines()[1:]
    assert len({len(line.rstrip()) for line in frontier}) == 1


@pytest.mark.parametrize("stopped", [0, 3])
def test_summary_says_that_an_early_correlation_of_survivors_reads_low(
    stopped: int, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"window:{8 + at}*4" for at in range(8)]
    ended = [record(text, 3.0 - at / 10, curve=((100, 4.0 - at / 10),)) for at, text in enumerate(texts[stopped:])]
    print_result(analyze([*ended, *(record(t, 4.5, state="stopped", steps=100) for t in texts[:stopped])], 0.5), {})
    out = " ".join(capsys.readouterr().out.split())
    assert "step 100" in out
    assert ("Stopped trials are missing from an early step's correlation, which therefore reads low." in out) == (
        stopped > 0
    )


def test_summary_cut_table_says_how_much_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    records = []
    for full in range(31):
        text = " ".join(["full"] * full + ["window:32"] * (30 - full))
        records.append(record(text, 3.0 - full / 100, role=f"bottom({full})"))
    print_result(analyze(records, 1.0), {})
    out = capsys.readouterr().out
    shown = int(re.search(r"(\d+) cheaper schedules? (?:is|are) in frontier.json", out)[1])  # type: ignore[index]
    frontier = out[out.index("Frontier") : out.index(" in frontier.json")].splitlines()[2:-1]
    assert len(frontier) + shown == 31
    assert len(out.splitlines()) <= 40
    assert re.search(r"and \d+ more", out)


def test_summary_run_without_result_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(analyze([record("full*2", None, state="failed", role="all_full")], 0.5), {})
    out = capsys.readouterr().out
    assert "Nothing to conclude: no trial has completed." in out
    assert "Failed trials: 1" in out
    assert "Noise: unknown" in out


def test_summary_perfect_order_has_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        record(f"window:{size}*4", size / 10, curve=((100, size / 5), (400, size / 10))) for size in range(8, 18)
    ]
    print_result(analyze(records, 0.5), {})
    assert re.search(r"step 100 of 400 → last step +1\.00 +no bound +1\.00 +no bound +10", capsys.readouterr().out)
    print_result(analyze(records[:9], 0.5), {})
    assert re.search(r"last step +1\.00 +too few trials +1\.00 +too few trials +9", capsys.readouterr().out)


def lines_of(out: str, first: str) -> str:
    """Return a sentence of the prose, unwrapped, from its first words to the next blank line."""
    return " ".join(out[out.index(first) :].split("\n\n")[0].split())


def test_summary_noise_and_seeds_needed_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        *confirmed("full window:32*3", [2.40, 2.52, 2.48], role="bottom(1)"),
        *confirmed("window:32*3 full", [2.30, 2.50, 2.40], role="top(1)"),
    ]
    result = analyze(records, 0.5)
    print_result(result, {})
    said = lines_of(capsys.readouterr().out, "With 3 seeds")
    noise = result.noise
    assert f"Seed std {noise.seed_std:.2g} (per schedule 0.061 to 0.1), paired-difference std 0.042." in said
    assert [size for size, _ in noise.seeds_for] == [noise.resolvable, 0.2, 0.1]
    assert noise.paired_std is not None
    for size, seeds in noise.seeds_for[1:]:
        # Two schedules on three seeds leave two degrees of freedom to the noise.
        enough, fewer = (t_test_power(noise.paired_std, size, n, std_degrees=2) for n in (seeds, seeds - 1))
        assert enough >= 0.8 > fewer
    (_, most), (_, more) = noise.seeds_for[1:]
    assert "Seeds needed for 80% power of the test: 3 for " in said
    assert f", {most} for 0.2 nats, {more} for 0.1 nats." in said
    place = "2 placements at equal cost (l = 1, cost 0.340) span 0.067 nats, 0.8 times the seed std"
    assert f"Signal: {place}" in said


def test_summary_accuracy_stands_beside_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    def with_probe(text: str, accuracies: list[float], role: str) -> list[TrialRecord]:
        return [
            replace(r, metrics=(("recall_accuracy", accuracy), ("recall_loss", 9.0), ("text_loss", 8.0)))
            for r, accuracy in zip(confirmed(text, [2.0 + accuracies[0], 2.1, 2.2], role=role), accuracies, strict=True)
        ]

    records = [*with_probe("full*4", [0.2, 0.9, 0.7], "all_full"), *with_probe("window:32*4", [0.4, 0.1, 0.1], "x")]
    result = analyze(records, 0.5)
    assert dict(result.entry(Schedule.parse("full*4")).metrics) == pytest.approx(
        {"recall_accuracy": 0.6, "recall_loss": 9, "text_loss": 8}
    )
    print_result(result, {})
    out = capsys.readouterr().out
    assert re.search(r"^schedule +l +cost +loss +± +recall accuracy +seeds$", out, re.MULTILINE)
    assert re.search(r"^  full\*4  \(all_full\) +4 +1.000 .* 0\.600 +3$", out, re.MULTILINE)
    # A source without an accuracy shows what it has; the search's losses come with the search's measures.
    searched = analyze([record("full*4", 2.0, metrics=(("text_loss", 1.25),)), record("window:32*4", 2.5)], 1.0)
    print_result(searched, {})
    out = capsys.readouterr().out
    assert re.search(r"^  full\*4 +4 +1.000 +2\.0000 +1\.250 +search$", out, re.MULTILINE)
    assert re.search(r"^  window:32\*4 +0 +0.120 +2\.5000 +search$", out, re.MULTILINE)


def test_summary_position_effect_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def placed(text: str, losses: list[float], bins: list[tuple[float, ...]], role: str) -> list[TrialRecord]:
        made = confirmed(text, losses, role=role)
        return [
            replace(r, loss_by_position=found, position_edges=(64, 128, 192))
            for r, found in zip(made, bins, strict=True)
        ]

    full = placed("full*4", [2.50, 2.52], [(3.0, 2.5, 2.0), (3.2, 2.5, 2.2)], "all_full")
    sparse = placed("window:32*4", [2.70, 2.71], [(3.1, 2.7, 2.6), (3.1, 2.7, 2.6)], "all_sparse")
    best = placed("window:32*3 full", [2.40, 2.43], [(3.0, 2.4, 1.9), (3.1, 2.4, 2.0)], "proposed")
    result = analyze([*full, *sparse, *best], 0.5)
    assert result.entry(Schedule.parse("full*4")).loss_by_position == pytest.approx((3.1, 2.5, 2.1))
    assert result.entry(Schedule.parse("full*4")).position_edges == (64, 128, 192)
    print_result(result, {})
    said = lines_of(capsys.readouterr().out, "By position")
    assert said == (
        "By position: the winner minus all_full is -0.150 nats in the last scored bin (to token 192), -0.050 in the "
        "first (to 64)."
    )
    print_result(analyze([*full, *sparse], 1.0), {})  # all_full wins: what is left to compare is all_sparse
    said = lines_of(capsys.readouterr().out, "By position")
    assert said.startswith("By position: all_sparse minus all_full is +0.500 nats in the last scored bin")
    print_result(analyze([*sparse, *best], 0.5), {})
    assert "By position" not in capsys.readouterr().out
