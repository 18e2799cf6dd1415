"""One network with shared weights: sequences as under their own schedules, scores as validated, nothing twice."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layersearch.data import Batch
from layersearch.engine import RankGroup
from layersearch.errors import UserError
from layersearch.ladder import LocalPool
from layersearch.model import IGNORE, Decoder, Layer, mean_loss
from layersearch.recipe import ModelConfig, Recipe, load_recipe
from layersearch.record import TrialRecord
from layersearch.schedule import Schedule
from layersearch.screening import CHOICES, SCORED, Screening, make_screening, screening_steps
from layersearch.shared import SharedDecoder, _scores
from layersearch.space import BoundSpace, Space
from layersearch.train import Trial, validate

CONFIG = ModelConfig(n_layers=3, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, qk_norm=True, tie_embeddings=False)
VOCAB, TOKENS = 11, 20
SCHEDULES = [
    Schedule.parse(text)
    for text in (
        "full*3",
        "window:2*3",
        "window:2 full window:2",
        "full window:5/2@2 block:4+sink:1",
        "full*2 window:2",
    )
]


def models(dtype: torch.dtype) -> tuple[SharedDecoder, dict[Schedule, Decoder]]:
    """Return a shared network and plain ones of every schedule, with the same weights."""
    torch.manual_seed(0)
    shared = SharedDecoder(CONFIG, VOCAB).to(dtype)
    plain = {schedule: Decoder(CONFIG, VOCAB, schedule).to(dtype) for schedule in SCHEDULES}
    for model in plain.values():
        model.load_state_dict(shared.state_dict())
    return shared, plain


def a_batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return tokens and targets, a few of which are not scored."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(VOCAB, size=(2, rows, TOKENS))
    targets[:, ::3] = IGNORE
    targets[0, 1] = IGNORE
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def test_it_starts_from_the_same_weights() -> None:
    torch.manual_seed(5)
    shared = SharedDecoder(CONFIG, VOCAB).state_dict()
    torch.manual_seed(5)
    plain = Decoder(CONFIG, VOCAB, SCHEDULES[1]).state_dict()
    assert shared.keys() == plain.keys()
    assert all(torch.equal(shared[name], plain[name]) for name in plain)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_each_sequence_is_as_under_its_own_schedule(dtype: torch.dtype, close: float) -> None:
    """Streams and gradients, rows of one schedule lying apart, the same network followed twice."""
    shared, plain = models(dtype)
    tokens, targets = a_batch(7)
    for of_rows in ([0, 0, 1, 2, 3, 0, 4], [4, 3, 3, 1, 1, 2, 2]):
        followed = [SCHEDULES[number] for number in of_rows]
        shared.follow(followed)
        shared.zero_grad()
        stream = shared.stream(tokens)
        loss = shared(tokens, targets)
        loss.backward()
        gradients = {name: torch.zeros_like(value) for name, value in shared.named_parameters()}
        for row, schedule in enumerate(followed):
            model, own = plain[schedule], slice(row, row + 1)
            model.zero_grad()
            alone = model.stream(tokens[own])
            assert torch.allclose(stream[own], alone, rtol=close, atol=close)
            (mean_loss(model.lm_head, model.norm, alone, targets[own]) / len(tokens)).backward()  # type: ignore[no-untyped-call]
            for name, value in model.named_parameters():
                assert value.grad is not None
                gradients[name] += value.grad
        for name, value in shared.named_parameters():
            assert value.grad is not None
            assert torch.allclose(value.grad, gradients[name], rtol=10 * close, atol=10 * close), name


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_scores_are_validation_losses(dtype: torch.dtype, close: float) -> None:
    """In chunks of which the last is short, and a schedule asked for twice. The cross-entropy is float32 in both."""
    shared, plain = models(dtype)
    tokens, targets = a_batch(10, seed=1)
    batch, group = Batch(tokens.numpy(), targets.numpy()), RankGroup()
    asked = [*SCHEDULES, SCHEDULES[0]]
    with torch.no_grad():
        found = _scores(shared, batch, asked, 4, group)
        for schedule, loss in zip(asked, found, strict=True):

            def token_losses(tokens: Tensor, targets: Tensor, model: Decoder = plain[schedule]) -> Any:
                return model(tokens, targets, reduce=False)

            assert loss == pytest.approx(validate(token_losses, batch, 4, group).loss, abs=close)
    assert len(set(found)) == len(SCHEDULES)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's projections run once for each beginning below it, what follows attention once for each with it."""
    calls: Counter[str] = Counter()
    for name in ("before", "after"):
        original = getattr(Layer, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(Layer, name, counted)
    shared, _ = models(torch.float32)
    asked = [Schedule.parse(" ".join(spans)) for spans in itertools.product(("full", "window:2"), repeat=3)]
    with torch.no_grad():
        shared(*a_batch(2), schedules=asked)
    assert calls == {"before": 1 + 2 + 4, "after": 2 + 4 + 8}


PLANTED = Space(name="planted", choices=("full", "window:2"))


def bound(space: Space = PLANTED, n_layers: int = 4) -> BoundSpace:
    return space.bind(n_layers=n_layers, seq_len=31, n_heads=2)


def gain(*more: str, recipe: str = "recall") -> Recipe:
    return load_recipe(recipe, ["search.sampler=gain", "search.screening=1.5", *more])


def test_what_is_drawn_and_scored() -> None:
    recipe, space = gain(), bound()
    named = [str(schedule) for schedule in space.named_baselines(0.6).values()]
    found = make_screening(recipe, space, 0.6, 3, named)
    assert found == make_screening(recipe, space, 0.6, 3, named)
    assert found.steps != make_screening(recipe, space, 0.6, 4, named).steps
    assert len(found.steps) == screening_steps(recipe) == round(1.5 * recipe.training.steps)
    assert {len(step) for step in found.steps} == {8}
    within = {str(schedule) for schedule in space.schedules() if space.cost(schedule) <= 0.6}
    assert set(found.scored) == within | set(named)
    assert "full*4" in found.scored
    assert "full*4" not in within
    assert len(found.scored) == len(set(found.scored))
    # Uniform over the whole space: each of the 16 is expected 45 times in 90 steps.
    drawn = Counter(text for step in found.steps for text in step)
    assert len(drawn) == 16
    assert min(drawn.values()) > 20
    assert max(drawn.values()) < 80
    assert found.training(recipe.training).steps == 90
    brief = gain("search.screening=0.1")
    assert make_screening(brief, space, 0.6, 3, named).training(brief.training).warmup_steps == 6


@pytest.mark.parametrize(("batch", "drawn"), [(32, 8), (12, 6), (7, 7), (11, 1), (4, 4)])
def test_schedules_of_a_step_share_the_batch_evenly(batch: int, drawn: int) -> None:
    found = make_screening(gain(f"training.batch_size={batch}"), bound(), 1.0, 0, [])
    assert {len(step) for step in found.steps} == {drawn}


@pytest.mark.parametrize("n_layers", [12, 24])
def test_of_many_schedules_some_are_scored(n_layers: int) -> None:
    """Within the budget, cheap ones among them, and the baselines whatever they cost."""
    space = bound(n_layers=n_layers)
    named = [str(schedule) for schedule in space.named_baselines(0.5).values()]
    found = make_screening(gain(), space, 0.5, 0, named)
    others = [Schedule.parse(text) for text in found.scored if text not in named]
    assert SCORED - len(named) <= len(others) <= SCORED
    assert max(map(space.cost, others)) <= 0.5
    assert len({schedule.n_full for schedule in others}) >= 4


def test_a_baseline_outside_the_space_is_not_scored() -> None:
    space = bound(Space(name="sparse", choices=("window:4", "window:2")))
    assert "full*4" not in make_screening(gain(), space, 1.0, 0, ["full*4"]).scored


def test_three_choices_are_refused() -> None:
    space = bound(Space(name="three", choices=("full", "window:2", "window:4")))
    with pytest.raises(UserError, match=r"'three' gives a layer 3 choices.*0\.5 to 0\.7.*search\.screening=0"):
        make_screening(gain(), space, 1.0, 0, [])
    # Three in all, but never more than two for one layer.
    two = space.space.choices[:CHOICES]
    narrowed = Space(name="two", choices=space.space.choices, layers=dict.fromkeys(range(4), two))
    assert len(make_screening(gain(), bound(narrowed), 1.0, 0, []).scored) == 16


def screened(recipe: Recipe, logs: Path) -> TrialRecord:
    """Run a screening in real workers."""
    size = recipe.model
    space = Space(name="two", choices=("full", "window:4"))
    bound = space.bind(n_layers=size.n_layers, seq_len=recipe.training.seq_len, n_heads=size.n_heads)
    screening = make_screening(recipe, bound, 1.0, 0, [])
    pool = LocalPool(recipe, 1, logs)
    try:
        trial = Trial(schedule="full*2", seed=0, phase="screen", role="screening", screening=screening)
        return pool.submit(trial).result()
    finally:
        pool.close()


def test_two_ranks_screen_as_one(tmp_path: Path) -> None:
    """Each sequence follows the same schedule on whichever rank it lies, and ZeRO changes no sum but its order."""
    one = screened(gain(recipe="smoke"), tmp_path)
    for stage in (0, 2):
        two = screened(gain("training.ranks=2", f"training.deepspeed=zero{stage}", recipe="smoke"), tmp_path)
        for record in (one, two):
            assert record.state == "complete", record.error
            assert record.steps == 12
            assert record.loss is None
            assert record.kernels
            assert [text for text, _ in record.screened] == ["full*2", "full window:4", "window:4 full", "window:4*2"]
        assert two.zero_stage == stage
        assert [loss for _, loss in two.screened] == pytest.approx([loss for _, loss in one.screened], abs=1e-4)
        assert TrialRecord.from_json(two.to_json()) == two


def test_a_screening_of_one_schedule_is_its_trial(tmp_path: Path) -> None:
    """Same seed, same batches, same optimiser: with one schedule in every step the weights are those of its trial."""
    recipe = load_recipe("smoke")
    text = "window:8 full"
    screening = Screening(steps=((text,),) * recipe.training.steps, scored=(text,))
    pool = LocalPool(recipe, 1, tmp_path)
    try:
        alone = pool.submit(Trial(schedule=text, seed=1)).result()
        shared = pool.submit(Trial(schedule="full*2", seed=1, phase="screen", screening=screening)).result()
    finally:
        pool.close()
    assert alone.loss == pytest.approx(shared.screened[0][1], abs=1e-6)
