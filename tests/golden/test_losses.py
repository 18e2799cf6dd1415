"""Pinned losses, and that a trial is a function of its recipe, schedule and seed alone.

A change that is not meant to change computation must leave these numbers as they are. See README.md here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers.pool import LocalPool

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).with_name("losses.json")
RECIPE = load_recipe("smoke", ["training.steps=12"])
CHECKPOINTS = (3, 6, 9)
TOLERANCE = 1e-5
"""Relative; float32 sums are ordered otherwise by other processors' kernels, and no change of meaning is that small."""
MEASURED = ("seconds", "train_seconds", "eval_seconds", "peak_memory_bytes")


def same(record: TrialRecord) -> dict[str, object]:
    """Return what must not differ between repetitions: all but clocks and memory."""
    return {key: value for key, value in plain(record).items() if key not in MEASURED}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialRecord]:
    """Train the pinned schedules, repeat one in the same worker and one in a fresh worker, and change the seed."""
    found = {}

    def run(**trials: Trial) -> None:
        pool = LocalPool(RECIPE, 1, tmp_path_factory.mktemp("logs"))
        try:
            for name, trial in trials.items():
                found[name] = pool.submit(trial).result()
                assert found[name].state == "complete", found[name].error
        finally:
            pool.close()

    full = Trial(schedule=Schedule.parse("full*2"), seed=1, checkpoints=CHECKPOINTS)
    window = Trial(schedule=Schedule.parse("window:4*2"), seed=1, checkpoints=CHECKPOINTS)
    wide = Trial(schedule=Schedule.parse("window:48*2"), seed=1, checkpoints=CHECKPOINTS)
    other = Trial(schedule=Schedule.parse("full*2"), seed=2, checkpoints=CHECKPOINTS)
    run(full=full, window=window, wide=wide, other_seed=other, full_again=full)
    run(window_afresh=window)
    return found


@pytest.mark.parametrize("schedule", ["full", "window"])
def test_losses_of_pinned_trials_equal_golden_values(schedule: str, records: dict[str, TrialRecord]) -> None:
    """The losses at steps 3, 6, 9 and 12 of two schedules."""
    pinned = json.loads(GOLDEN.read_text(encoding="utf-8"))[schedule]
    assert [step for step, _ in records[schedule].curve] == [step for step, _ in pinned]
    assert [loss for _, loss in records[schedule].curve] == pytest.approx(
        [loss for _, loss in pinned], rel=TOLERANCE, abs=0
    )


def test_trial_repeated_gives_the_same_bits(records: dict[str, TrialRecord]) -> None:
    """In the worker that has trained others since, and in a fresh one."""
    assert same(records["full_again"]) == same(records["full"])
    assert same(records["window_afresh"]) == same(records["window"])


def test_trial_other_schedule_or_seed_gives_other_losses(records: dict[str, TrialRecord]) -> None:
    """What ought to change the loss changes it by more than the tolerance."""
    full = records["full"].loss
    for name in ("window", "other_seed"):
        assert records[name].loss != pytest.approx(full, rel=10 * TOLERANCE)


def test_trial_window_over_the_whole_text_equals_full_attention(records: dict[str, TrialRecord]) -> None:
    """As a loss, not only as a mask."""
    assert [loss for _, loss in records["wide"].curve] == pytest.approx(
        [loss for _, loss in records["full"].curve], rel=TOLERANCE
    )
    assert records["wide"].cost == 1.0


def test_decoder_initial_weights_depend_on_the_seed_alone() -> None:
    """Spans carry no weights: bit for bit the same for every schedule."""

    def weights(schedule: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return Decoder(RECIPE.model, RECIPE.data.vocab_size, Schedule.parse(schedule)).state_dict()

    first = weights("full*2", 1)
    for text in ("window:4*2", "block:12 full", "window:8/2@1+sink:2+las:0.05/3 full"):
        second = weights(text, 1)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    other = weights("full*2", 2)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])


def test_data_order_depends_on_the_seed_alone() -> None:
    """A step's batch is the same whatever was read before, and ranks read parts of the same batch."""
    source = open_source(RECIPE.data, RECIPE.training.seq_len)
    late = source.train(seed=1, step=7, batch_size=4)
    source.train(seed=2, step=3, batch_size=4)
    again = open_source(RECIPE.data, RECIPE.training.seq_len).train(seed=1, step=7, batch_size=4)
    assert (late.tokens == again.tokens).all()
    assert (late.targets == again.targets).all()
    assert (source.train(seed=1, step=7, batch_size=2).tokens == late.tokens[:2]).all()
    assert (source.train(seed=2, step=7, batch_size=4).tokens != late.tokens).any()
