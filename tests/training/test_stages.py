"""Training in stages: lengths, windows and rates of each step, the exact cost of all, and a broken-off trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.config.stages import divide
from layersearch.data import open_training
from layersearch.errors import ConfigError, LayersearchError
from layersearch.model.decoder import Decoder
from layersearch.model.flops import model_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.plan import make_plan
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.stages import attention_so_far, check_stages, stage_costs, staged_factor, trial_stages
from tests.data.test_source_contract import TEXTS

SCHEDULE = Schedule.parse("window:16 full")
STAGES = (
    "[{seq_len: 12, learning_rate: 0.004, share: 4, window: 0.25},"
    " {seq_len: 24, learning_rate: 0.002, share: 2, window: 0.5}, {seq_len: 48, learning_rate: 0.001, share: 2}]"
)
CHANGES = ["training.steps=16", "training.warmup_steps=4", "training.learning_rate=0.001", f"training.stages={STAGES}"]


def staged(kind: str = "smoke", *changes: str) -> Recipe:
    return load_recipe(kind, [*CHANGES, *changes])


def test_steps_are_divided_by_shares_and_each_stage_has_one() -> None:
    assert [own.number for own in divide([75, 9, 9, 6, 1], 400)] == [300, 36, 36, 24, 4]
    assert [own.first for own in divide([75, 9, 9, 6, 1], 400)] == [0, 300, 336, 372, 396]
    assert [own.number for own in divide([1000, 1, 1], 3)] == [1, 1, 1]


def test_stages_double_length_and_window_and_halve_the_rate() -> None:
    stages = trial_stages(staged().training)
    steps = [(one.first, one.training.steps, one.training.seq_len) for one in stages]
    assert steps == [(0, 8, 12), (8, 4, 24), (12, 4, 48)]
    assert [str(one.schedule(SCHEDULE)) for one in stages] == ["window:4 full", "window:8 full", "window:16 full"]
    assert [one.training.warmup_steps for one in stages] == [2, 1, 1]


def test_rate_warms_up_and_decays_in_each_stage() -> None:
    training = staged("smoke", "training.final_lr_ratio=1.0").training
    rates = [training.learning_rate * staged_factor(step, training) for step in range(17)]
    assert rates == pytest.approx([0.002] + [0.004] * 7 + [0.002] * 4 + [0.001] * 5)
    decayed = staged().training
    assert staged_factor(7, decayed) < staged_factor(2, decayed)
    assert staged_factor(8, decayed) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["smoke", "smoke-encoder"])
def test_cost_is_the_sum_of_every_steps_visible_pairs(kind: str) -> None:
    recipe, vocab = staged(kind), 301
    model, both = recipe.model, recipe.model.bidirectional
    pairs, products, so_far = 0, 0, []
    for length, window, steps in ((12, 4, 8), (24, 8, 4), (48, 16, 4)):
        schedule = Schedule.parse(f"window:{window} full")
        at = torch.arange(length)
        seen = sum(int(span.visible(at[:, None], at[None], bidirectional=both).sum()) for span in schedule)
        rows = steps * recipe.training.batch_size
        pairs += rows * 2 * model.n_heads * model.head_dim * seen
        products += rows * 3 * model_flops(model, vocab, schedule, seq_len=length)
        so_far.append(pairs)
    costs = stage_costs(recipe, SCHEDULE, vocab)
    assert (sum(cost.attention_flops for cost in costs), sum(cost.flops for cost in costs)) == (pairs, products)
    assert [attention_so_far(recipe, SCHEDULE, steps) for steps in (0, 8, 12, 16)] == [0, *so_far]
    assert attention_so_far(recipe, SCHEDULE, 4) * 2 == so_far[0]


def test_data_of_a_step_have_its_stages_length_and_validation_the_last_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    recipe = staged("smoke-encoder", "data.source=text", f"data.files=[{tmp_path / 'a.txt'}]")
    source = open_training(recipe.data, recipe.training, tmp_path / "cache")
    lengths = [source.train(seed=0, step=step, batch_size=2).tokens.shape[1] for step in (0, 7, 8, 11, 12, 15)]
    assert lengths == [12, 12, 24, 24, 48, 48]
    assert source.validation(2).tokens.shape == (2, 48)
    # 15% of the tokens of each stage's own sequences are masked.
    assert [(source.train(seed=0, step=at, batch_size=1).targets >= 0).sum() for at in (0, 15)] == [2, 7]
    other = open_training(recipe.data, load_recipe("smoke-encoder").training, tmp_path / "cache")
    assert source.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.seq_len=96"], r"the last of stages must have training.seq_len \(96\), .* not 48, 0.001 and 1"),
        (["training.learning_rate=0.1"], r"training.learning_rate \(0.1\) and window 1, not 48, 0.001 and 1"),
        (["training.steps=2", "training.warmup_steps=0"], "steps 2 are fewer than the 3 stages; raise it"),
        (["training.start=a.safetensors"], "start goes on from a training, and stages begin one"),
        (["training.stages=[{seq_len: 96, learning_rate: 0.1, share: 1}, "
          "{seq_len: 48, learning_rate: 0.001, share: 1}]"], "a stage of 96 tokens is longer than seq_len 48"),
        (["training.stages=[{seq_len: 48, learning_rate: 0.001}]"], "training.stages.0.share' is missing"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        staged("smoke", *changes)


def test_span_that_does_not_fit_a_stages_text_is_refused_before_a_search() -> None:
    space = Space(name="one", choices=("full", "window:8+sink:13"))
    refusal = r"the choice window:8\+sink:13: training.stages\[0\]: .*text of 12 tokens"
    with pytest.raises(LayersearchError, match=refusal):
        make_plan(staged(), BoundSpace.of(space, staged()), 0.9, 0)
    with pytest.raises(LayersearchError, match=r"training.stages\[0\]: layer 1: block:12~2\+sink:20 is longer"):
        check_stages(Schedule.parse("full block:48~8+sink:20"), staged())


def test_conversion_refuses_the_stages_of_a_trial() -> None:
    from layersearch.convert.config import load_convert_recipe

    with pytest.raises(
        ConfigError, match=r"training\.stages is for trials from scratch; a conversion has the key stages"
    ):
        load_convert_recipe(
            "plain", ["training.stages=[{seq_len: 512, learning_rate: 3e-4, share: 1}]", "training.learning_rate=3e-4"]
        )


@pytest.fixture(scope="module")
def group() -> Iterator[Any]:
    from layersearch.training.engine import RankGroup, join, leave

    join(RankGroup(), "unused")
    yield RankGroup()
    leave()


class _Broken(Exception):
    """Stands for a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smoke", "smoke-encoder"])
def test_trial_trains_each_stage_and_goes_on_inside_one(
    kind: str, group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layersearch.training.trial import run_trial

    (tmp_path / "a.txt").write_text("".join(TEXTS))
    text = ["data.source=text", f"data.files=[{tmp_path / 'a.txt'}]"] if kind == "smoke-encoder" else []
    lengths = {"smoke": 20, "smoke-encoder": 12}[kind]  # a recall task needs some tokens
    stages = STAGES.replace("seq_len: 12", f"seq_len: {lengths}")
    more = [f"training.stages={stages}", "training.checkpoint_seconds=0", "data.pairs=1", "data.queries=1"]
    recipe = staged(kind, *text, *more, *(["data.distance=4"] if kind == "smoke" else []))
    source = open_training(recipe.data, recipe.training, tmp_path / "cache")
    trial = Trial(schedule=SCHEDULE, seed=1, checkpoints=(4,))
    seen: list[tuple[bool, int, str]] = []
    stream = Decoder.stream

    def noted(self: Decoder, tokens: torch.Tensor, *rest: Any) -> Any:
        spans = str(Schedule(tuple(layer.self_attn.span for layer in self.layers)))  # type: ignore[union-attr, misc]
        seen.append((self.training, tokens.shape[1], spans))
        return stream(self, tokens, *rest)

    monkeypatch.setattr(Decoder, "stream", noted)
    whole = run_trial(trial, recipe, source, group)
    assert whole.state == "complete", whole.error
    trained = [(length, spans) for training, length, spans in seen if training]
    assert trained == [
        *[(lengths, "window:4 full")] * 8, *[(24, "window:8 full")] * 4, *[(48, "window:16 full")] * 4
    ]  # fmt: skip
    assert {(length, spans) for training, length, spans in seen if not training} == {(48, "window:16 full")}
    assert whole.train_flops == attention_so_far(recipe, SCHEDULE, 16)
    assert TrialRecord.from_json(whole.to_json()) == whole

    steps = iter(range(1, 17))

    def beat() -> None:
        if len([one for one in seen if one[0]]) == 16 + 11 and next(steps):
            raise _Broken

    with pytest.raises(_Broken):
        run_trial(trial, recipe, source, group, beat=beat, unfinished=tmp_path / "unfinished")
    seen.clear()
    again = run_trial(trial, recipe, source, group, unfinished=tmp_path / "unfinished")
    trained = [(length, spans) for training, length, spans in seen if training]
    assert trained == [*[(24, "window:8 full")] * 2, *[(48, "window:16 full")] * 4]  # saved after step 10
    assert again.loss == pytest.approx(whole.loss, abs=1e-6)
    assert [loss for _, loss in again.curve] == pytest.approx([loss for _, loss in whole.curve], abs=1e-6)
