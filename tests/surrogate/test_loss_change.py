"""What a run says about replacing a schedule: measured in pairs where it can be, else predicted with an interval."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from layersearch.cli.main import main
from layersearch.config.recipe import load_recipe
from layersearch.errors import UserError
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule
from layersearch.surrogate.loss_change import loss_change
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import confirmed, record

RECIPE = load_recipe("smoke", ["model.n_layers=4"])
SIZES = (2, 4, 8, 16, 32)


def truth(schedule: Schedule) -> float:
    """Return a loss that falls with the logarithm of each layer's window, in upper layers more."""
    return 3 - sum(0.02 * (layer + 1) * math.log2(span.size or 48) for layer, span in enumerate(schedule))


def run(seed: int = 0, trials: int = 40) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    every = [
        Schedule.parse(" ".join(f"window:{size}" for size in sizes)) for sizes in itertools.product(SIZES, repeat=4)
    ]
    chosen = rng.choice(len(every), trials, replace=False)
    return [record(str(every[at]), truth(every[at]) + float(rng.normal(0, 0.003))) for at in chosen]


def test_loss_change_confirmed_schedules_are_measured_in_pairs() -> None:
    old, new = Schedule.parse("window:2 window:8*3"), Schedule.parse("window:4*4")
    records = [*run(), *confirmed(str(old), [2.0, 2.1, 2.3]), *confirmed(str(new), [2.5, 2.6, 2.81])]
    found = loss_change(records, RECIPE, old, new)
    assert found.seeds == 3
    assert found.mean == pytest.approx(0.51 - 0.02 / 3)
    assert found.low < found.mean < found.high < 0.6
    assert "nats of loss, interval +0.4" in str(found)
    assert str(found).endswith("measured on 3 fresh seeds")
    assert loss_change(records, RECIPE, new, old).mean == -found.mean


@pytest.mark.parametrize(
    ("old", "new"), [("window:32*2 window:2*2", "window:9*4"), ("window:4 window:2 window:16*2", "window:6*4")]
)
def test_loss_change_untrained_spans_are_predicted(old: str, new: str) -> None:
    asked, other = Schedule.parse(old), Schedule.parse(new)
    wanted = truth(other) - truth(asked)
    held = 0
    for seed in range(6):
        found = loss_change(run(seed), RECIPE, asked, other)
        assert found.seeds is None
        assert "predicted from the run's trials" in str(found)
        assert abs(found.mean - wanted) < 0.02
        held += found.low <= wanted <= found.high
    # The made-up loss goes by the logarithm of the window, the surrogate by that of the pairs: nearly the same.
    assert held >= 3


def test_loss_change_rarely_tried_kind_has_a_wider_interval() -> None:
    blocks = loss_change(run(), RECIPE, Schedule.parse("block:8*4"), Schedule.parse("window:5*4"))
    windows = loss_change(run(), RECIPE, Schedule.parse("window:6*4"), Schedule.parse("window:5*4"))
    assert blocks.high - blocks.low > 1.5 * (windows.high - windows.low)


def test_loss_change_unknowable_is_reported() -> None:
    old, new = Schedule.parse("window:2*4"), Schedule.parse("window:4*4")
    with pytest.raises(UserError, match="too few to learn from"):
        loss_change(run(trials=3), RECIPE, old, new)
    with pytest.raises(UserError, match="the run's model has 4 layers"):
        loss_change(run(), RECIPE, Schedule.parse("window:2*5"), new)
    with pytest.raises(UserError, match="longer than the text of 48 tokens"):
        loss_change(run(), RECIPE, old, Schedule.parse("window:400*4"))


def test_export_refusal_says_what_the_nearest_costs(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    winner = read_schedule(saved_run / "winner.yaml")
    family = "llama4" if any(span.kind == "window" for span in winner) else "qwen3"
    line = ["export", str(saved_run), "--to", "hf", "--family", family, "--out", str(tmp_path / "out")]
    assert main(line) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    for words in (
        f"family {family} holds no",
        "the nearest schedule it holds is '",
        "times the attention FLOPs",
        "nats of",
    ):
        assert words in refusal
    nearest = refusal.split("the nearest schedule it holds is '")[1].split("'")[0]
    assert main(["export", nearest, *line[2:], "--recipe", "smoke"]) == 0
    assert main(["verify-export", line[-1]]) == 0
