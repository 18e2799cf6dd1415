"""What is no run or no place, for ``report``."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import Line, Refuses, begun, edited, write

pytest.importorskip("plotly", reason="needs the extra report: pip install 'layersearch[report]'")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(["report", "no"], ("no:", "give a folder that 'layersearch run' made"), id="nothing there"),
        pytest.param(lambda at, run: ["report", str(at)], ("no run folder", "give a folder that"), id="no run"),
        pytest.param(
            lambda at, run: ["report", str(begun(at, run, b"garbage\n"))],
            ("trials.jsonl line 1", "restore the line"),
            id="damaged",
        ),
        pytest.param(
            lambda at, run: ["report", str(edited(at, run, '"format": 1', '"format": 9'))],
            ("format 9", "use the version that made it"),
            id="another version",
        ),
        pytest.param(
            lambda at, run: ["report", str(edited(at, run, '"name": "smoke"', '"name": "<script>"'))],
            ("name must be letters",),
            id="hostile recipe name",
        ),
        pytest.param(
            lambda at, run: ["report", str(run), "--out", str(at)],
            ("--out", "a folder stands there", "name a file"),
            id="a folder",
        ),
        pytest.param(
            lambda at, run: ["report", str(run), "--out", write(at / "f", "") + "/a/b.html"],
            ("--out", "cannot be written", "name another file"),
            id="below a file",
        ),
        pytest.param(["report", "no", "--watch"], ("no:", "give a folder"), id="watch of nothing"),
        pytest.param(["report", "no", "--every", "0"], ("--every", "at least 1"), id="no time between pages"),
    ],
)
def test_report_of_what_is_no_run_or_place_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
