"""What a user can get wrong in a constraint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.refusals import Line, Refuses, begun, edited, write

LATENCIES = "full: 0.3\nwindow:4: 0.1\nwindow:8: 0.1\nblock:12: 0.1\n"
LATENCY = ["--latency", "3", "--latency-table", "ms.yaml"]


@pytest.mark.parametrize(
    ("constraint", "table", "words"),
    [
        pytest.param([], None, ("--budget --kv-cache --latency is required", "solve --help"), id="no constraint"),
        pytest.param(
            ["--budget", "0.3", "--kv-cache", "9KiB"],
            None,
            ("--kv-cache", "not allowed with argument --budget"),
            id="two constraints",
        ),
        *[
            pytest.param([f"--budget={number}"], None, ("budget", "(0, 1]"), id=f"budget {number}")
            for number in ("0", "-1", "2", "nan", "inf")
        ],
        pytest.param(
            ["--budget", "0.01"], None, ("budget 0.01", "raise the budget to 0.1582"), id="budget below the space"
        ),
        pytest.param(["--budget", "low"], None, ("--budget", "float"), id="budget of letters"),
        pytest.param(
            ["--kv-cache", "300"], None, ("--kv-cache 300", "window:4*2", "raise it to 512"), id="cache too small"
        ),
        pytest.param(["--kv-cache", "0"], None, ("--kv-cache", "at least 1 byte"), id="cache of nothing"),
        pytest.param(["--kv-cache", "small"], None, ("--kv-cache 'small'", "65536 or 64KiB"), id="cache in words"),
        pytest.param(["--kv-cache=-5"], None, ("--kv-cache '-5'", "65536 or 64KiB"), id="cache below zero"),
        pytest.param(["--kv-cache", "3kib"], None, ("unknown unit 'kib'", "known: B, KiB"), id="cache of another unit"),
        pytest.param(
            ["--kv-cache", "9KiB", "--bytes", "0"], None, ("--bytes", "at least 1, not 0"), id="values of no bytes"
        ),
        pytest.param(
            ["--budget", "0.3", "--bytes", "4"], None, ("--bytes", "needs --kv-cache"), id="bytes without a cache"
        ),
        pytest.param(["--latency", "3"], None, ("--latency needs --latency-table",), id="latency without its table"),
        pytest.param(
            ["--budget", "0.3", "--latency-table", "x"],
            None,
            ("--latency-table needs --latency",),
            id="table without its limit",
        ),
        *[
            pytest.param(
                [f"--latency={number}", "--latency-table", "ms.yaml"],
                LATENCIES,
                ("--latency", "positive number of milliseconds"),
                id=f"latency {number}",
            )
            for number in ("0", "-1", "nan", "inf")
        ],
        pytest.param(
            ["--latency", "0.1", "--latency-table", "ms.yaml"],
            LATENCIES,
            ("--latency 0.1", "takes 0.2 ms", "raise it"),
            id="latency too short",
        ),
        pytest.param(LATENCY, None, ("ms.yaml", "give an existing file"), id="no table"),
        pytest.param(LATENCY, "", ("ms.yaml", "milliseconds of one layer by span"), id="empty table"),
        pytest.param(LATENCY, "- 3\n", ("ms.yaml", "milliseconds of one layer by span"), id="table that is a list"),
        pytest.param(
            LATENCY, "full: 1\nwindow:4: 1\n", ("no latency of window:8, block:12", "add"), id="missing spans"
        ),
        pytest.param(LATENCY, LATENCIES + "ful: 2\n", ("ms.yaml", "did you mean 'full'"), id="latency of no span"),
        pytest.param(
            LATENCY, LATENCIES.replace("0.3", "slow"), ("ms.yaml: full", "found 'slow'"), id="latency in words"
        ),
        pytest.param(LATENCY, LATENCIES.replace("0.3", "0"), ("ms.yaml: full", "greater than 0"), id="latency of zero"),
        pytest.param(
            LATENCY,
            LATENCIES.replace("0.3", ".nan"),
            ("ms.yaml: full", "finite number"),
            id="latency that is no number",
        ),
        pytest.param(LATENCY, LATENCIES + "'window:4/1': 1\n", ("ms.yaml", "window:4 is named twice"), id="span twice"),
    ],
)
def test_solve_wrong_constraint_is_refused_in_one_line(
    constraint: list[str], table: str | None, words: tuple[str, ...], refuses: Refuses
) -> None:
    def line(at: Path, run: Path) -> list[str]:
        if table is not None:
            write(at / "ms.yaml", table)
        return ["solve", str(run), *constraint]

    refuses(line, *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            ["solve", "no", "--budget", "0.3"], ("no:", "give a folder that 'layersearch run' made"), id="nothing there"
        ),
        pytest.param(
            lambda at, run: ["solve", str(begun(at, run)), "--budget", "0.3"],
            ("no trial has finished yet", "run the command"),
            id="no trials",
        ),
        pytest.param(
            lambda at, run: [
                "solve",
                str(begun(at, run, b"".join((run / "trials.jsonl").read_bytes().splitlines(keepends=True)[:3]))),
                "--budget",
                "0.3",
            ],
            ("3 schedules", "too few to learn from", "--trials"),
            id="too few trials",
        ),
        pytest.param(
            lambda at, run: [
                "solve",
                str(edited(at, run, '"choices": \\[', '"choices": [3, ')),
                "--budget",
                "0.3",
            ],
            ("config.json: space", "choices.0"),
            id="damaged space",
        ),
    ],
)
def test_solve_run_that_cannot_answer_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
