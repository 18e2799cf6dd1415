"""Progress without a terminal: plain lines, one per phase and then at most every `QUIET_SECONDS`."""

from __future__ import annotations

import pytest

from layersearch.cli import progress as module
from layersearch.cli.progress import ProgressDisplay, duration
from layersearch.convert.run import Step
from layersearch.convert.run_folder import Evaluation, Moment


def evaluated(moment: Moment, step: int, loss: float) -> Step:
    """Return the report of an evaluation."""
    edges = {"loss_by_position": (loss,), "position_edges": (8,)}
    evaluation = Evaluation(moment=moment, step=step, schedule="full", seq_len=8, loss=loss, **edges)
    return Step(step=step, steps=40, loss=loss, evaluation=evaluation)


def test_progress_steps_print_each_phase_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("steps") as display:
        display.steps(evaluated("original", 0, 2.0))
        for step in (1, 2, 3):
            display.steps(Step(step=step, steps=40, loss=3.0))
        display.steps(evaluated("training", 3, 2.5))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "original: 0/40 steps; loss 2.0000",
        "training: 1/40 steps; training loss 3.0000",
        "validation: 3/40 steps; loss 2.5000",
    ]


def test_progress_steps_after_the_quiet_time_print_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 100.0, 110.0, 110.0, 130.0, 130.0))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    display = ProgressDisplay("steps")
    for step in (1, 3, 7):
        display.steps(Step(step=step, steps=40, loss=3.0))
    assert capsys.readouterr().err.splitlines() == [
        "training: 1/40 steps; training loss 3.0000",
        "training: 7/40 steps; training loss 3.0000, about 3 min left",  # 6 steps took 30 s, 33 are left
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (89.0, "89 s"), (90.0, "2 min"), (5400.0, "1.5 h"), (36_000.0, "10.0 h")]
)
def test_duration_has_a_readable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
