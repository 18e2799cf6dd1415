"""What a conversion prints: losses, digits right, and how the model is loaded."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from layersearch.cli.convert import print_conversion
from layersearch.convert.run import Conversion
from layersearch.convert.run_folder import Evaluation, Moment
from layersearch.schedule import Schedule
from tests.helpers.refusals import RUN, Refuses

SCHEDULE = Schedule.parse("full window:8+sink:2")


def evaluation(moment: Moment, loss: float, right: float) -> Evaluation:
    return Evaluation(moment=moment, step=0, schedule=str(SCHEDULE), seq_len=16, loss=loss, loss_by_position=(loss,),
                      position_edges=(16,), metrics=(("answer_accuracy", right),))  # fmt: skip


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("ministral", None, "as a stock ministral"),
        ("hf-remote", None, "trust_remote_code=True: it brings its modeling file (hf-remote), because no stock family"),
        ("hf-remote", "hf-remote", "modeling file (hf-remote)\n"),
    ],
)
def test_print_conversion_says_retrieval_and_how_the_model_loads(family: str, asked: str | None, said: str) -> None:
    evaluations = (
        evaluation("original", 2.0, 1.0),
        evaluation("switched", 3.5, 0.17),
        evaluation("converted", 2.1, 0.93),
    )
    found = Conversion(evaluations=evaluations, model=Path("out/model"), family=family, cost=0.3)
    screen = io.StringIO()
    print_conversion(found, SCHEDULE, screen, False, family=asked)
    text = screen.getvalue()
    assert said in text
    assert "digits right" in text
    assert "0.17" in text
    assert "recovered 93% of it" in text


def test_run_heal_without_selection_is_refused(refuses: Refuses) -> None:
    refuses([*RUN, "--heal"], "--heal follows a selection", "layersearch convert --run")
