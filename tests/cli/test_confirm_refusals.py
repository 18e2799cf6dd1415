"""What a user can get wrong in a schedule to confirm."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import Line, Refuses


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            ["confirm", "no", "full*2"], ("no:", "give a folder that 'layersearch run' made"), id="nothing there"
        ),
        pytest.param(lambda at, run: ["confirm", str(run)], ("SCHEDULE", "confirm --help"), id="no schedule"),
        pytest.param(lambda at, run: ["confirm", str(run), "ful*2"], ("did you mean 'full'",), id="unknown kind"),
        pytest.param(
            lambda at, run: ["confirm", str(run), "full*3"], ("3 layers", "one span per layer"), id="another depth"
        ),
        pytest.param(
            lambda at, run: ["confirm", str(run), "full window:5"],
            ("'full window:5'", "outside search space 'smoke'"),
            id="outside the space",
        ),
        pytest.param(
            lambda at, run: ["confirm", str(run), "full*2", "--ray-address", "auto"],
            ("--ray-address auto needs --pool ray",),
            id="Ray's address without Ray",
        ),
        pytest.param(
            lambda at, run: ["confirm", str(run), "full*2", "--pool", "ray", "--ray-address", "127.0.0.1:1"],
            ("127.0.0.1:1: no answer", "start the cluster"),
            id="Ray's address where nobody listens",
        ),
        pytest.param(
            lambda at, run: ["confirm", str(run), "w.yaml"], ("w.yaml", "give an existing file"), id="missing file"
        ),
    ],
)
def test_confirm_wrong_schedule_or_run_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
