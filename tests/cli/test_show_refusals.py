"""What is no run, for ``show`` and ``plot``."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import Line, Refuses, begun, write


@pytest.mark.parametrize(
    ("line", "words"),
    [
        *[
            pytest.param(
                [command, "no"], ("no:", "give a folder that 'layersearch run' made"), id=f"{command}: nothing there"
            )
            for command in ("show", "plot")
        ],
        *[
            pytest.param(
                lambda at, run, command=command: [command, str(at)],
                ("no run folder", "give a folder that"),
                id=f"{command}: no run",
            )
            for command in ("show", "plot")
        ],
        *[
            pytest.param(
                lambda at, run, command=command: [command, str(begun(at, run))],
                ("no trial has finished yet", "run the command"),
                id=f"{command}: no trials",
            )
            for command in ("show", "plot")
        ],
        pytest.param(
            lambda at, run: ["show", str(begun(at, run, b"garbage\n"))],
            ("trials.jsonl line 1", "restore the line"),
            id="show: damaged",
        ),
        pytest.param(
            lambda at, run: ["plot", str(run), "--out", write(at / "f", "") + "/a"],
            ("--out", "name another"),
            id="plot: below a file",
        ),
    ],
)
def test_show_and_plot_of_what_is_no_run_are_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
