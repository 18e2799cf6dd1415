"""The study of transfer: schedules trained together as one batched model are those trained alone by the project."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.data import Source, open_source
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.training.engine import RankGroup, learning_rate_factor
from layersearch.training.evaluate import validate
from layersearch.training.optimizer import make_optimizer

FOLDER = Path(__file__).parents[2] / "analysis/transfer"
MODULES = ("batched", "scales", "study", "tables")
SCHEDULES = [Schedule.parse("window:3 full"), Schedule.parse("block:4 window:2"), Schedule.parse("full*2")]
SIZES = (
    "model.n_layers=2",
    "model.d_model=16",
    "model.d_ff=40",
    "data.source=recall",
    "data.vocab_size=12",
    "data.pairs=3",
    "data.queries=2",
    "data.distance=4",
    "training.seq_len=16",
    "training.batch_size=4",
    "training.steps=8",
    "training.warmup_steps=2",
    "training.precision=float32",
    "training.val_sequences=6",
)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:  # another study of analysis/ may have modules of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in ("batched", "scales")}
    for name in MODULES:
        sys.modules.pop(name, None)


def alone(recipe: Recipe, source: Source, schedule: Schedule, seed: int) -> dict[int, float]:
    """Train one schedule with the project's decoder, kernels, optimizer and learning rates; return losses by step."""
    training = recipe.training
    torch.manual_seed(seed)
    model = Decoder(recipe.model, source.vocab_size, schedule)
    optimizer = make_optimizer(model, training)
    peaks = [group["lr"] for group in optimizer.param_groups]
    losses = {}
    for step in range(training.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, training)
        batch = source.train(seed=seed, step=step, batch_size=training.batch_size)
        loss = model(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in (4, training.steps):
            with torch.no_grad():
                held = source.validation(training.val_sequences)
                losses[step + 1] = validate(
                    lambda tokens, targets, *_: model(tokens, targets, reduce=False),
                    held,
                    training.batch_size,
                    RankGroup(),
                ).loss
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "clip", "tolerance"),
    # Muon rounds to bf16, so sums in another order move its weights a little.
    [("adamw", 0.05, 2e-5), ("muon", 0.05, 5e-3)],
)
def test_train_of_stacked_models_equals_the_training_of_each_alone(
    modules: dict[str, ModuleType], optimizer: str, clip: float, tolerance: float
) -> None:
    """The gradients are longer than the clip, so models that were clipped together would part."""
    recipe = load_recipe("laptop", [*SIZES, f"training.optimizer={optimizer}", f"training.grad_clip={clip}"])
    source = open_source(recipe.data, recipe.training.seq_len)
    found = dict(modules["batched"].train(recipe, source, SCHEDULES, seed=3, checkpoints=(4, 8)))
    for number, schedule in enumerate(SCHEDULES):
        expected = alone(recipe, source, schedule, 3)
        assert {step: at["loss"][number] for step, at in found.items()} == pytest.approx(expected, abs=tolerance)
    last = found[8]["loss"]
    assert min(abs(last[a] - last[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 2 * tolerance


def test_stretch_keeps_relative_depth_and_cost(modules: dict[str, ModuleType]) -> None:
    scales = modules["scales"]
    deeper = scales.stretch("window:4 full*2 block:16*3", depth=12, tokens=512)
    assert str(deeper) == "window:32*2 full*4 block:128*6"
    every = {name: scales.schedules(scale) for name, scale in scales.SCALES.items()}
    base = {name: budget_ratio(s, seq_len=64, n_heads=2) for name, s in every["base"].items()}
    assert len(base) >= 24
    for name, schedules in every.items():
        scale = scales.SCALES[name]
        for each, schedule in schedules.items():
            assert len(schedule) == scale.depth
            assert budget_ratio(schedule, seq_len=scale.tokens, n_heads=2) == pytest.approx(base[each], abs=0.015)
