"""The classifier: what it reads the class from, its exact cost, and a trial with a marked token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.config.recipe import load_recipe
from layersearch.data.source import check_marks
from layersearch.errors import LayersearchError
from layersearch.model.build import new_model
from layersearch.model.classifier import Classifier
from layersearch.model.flops import num_parameters, recipe_flops
from layersearch.model.fvcore_flops import traced_flops
from layersearch.schedule import Schedule
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool


def model(text: str, *changes: str) -> Classifier:
    torch.manual_seed(0)
    found = new_model(load_recipe("smoke-classes", changes), 18, Schedule.parse(text))
    assert isinstance(found, Classifier)
    return found.double()


def moved(one: Classifier, token: int, marked: torch.Tensor | None = None) -> bool:
    tokens = torch.arange(40)[None] % 15 + 3
    tokens[0, 30:] = 0
    other = tokens.clone()
    other[0, token] = 17 if tokens[0, token] != 17 else 16
    with torch.no_grad():
        return bool((one.scores(tokens, marked) - one.scores(other, marked)).abs().max() > 1e-12)


def test_class_is_read_from_the_first_token_or_the_mean_of_the_example() -> None:
    # Two windows of 4 keys on each side reach 8 tokens.
    near = model("window:4*2")
    assert [moved(near, token) for token in (3, 8, 9, 29)] == [True, True, False, False]
    mean = model("window:4*2", "model.pooling=mean")
    assert [moved(mean, token) for token in (3, 9, 29)] == [True, True, True]
    # Padding is no part of the mean, and a decoder's tokens do not see it.
    decoder = model("full*2", "model.kind=decoder")
    tokens = torch.arange(40)[None] % 15 + 3
    tokens[0, 30:] = 0
    assert torch.allclose(decoder.scores(tokens), decoder.scores(tokens[:, :30]))


def test_marked_token_carries_news_from_everywhere() -> None:
    one = model("window:4+global:mask*2")
    marked = torch.zeros(1, 40, dtype=torch.bool)
    marked[0, 20] = True
    assert moved(one, 39)  # unmarked, the first token is global
    # Token 24 reaches the marked one in one layer, and that one the first token in the next.
    assert moved(one, 24, marked)
    assert moved(model("window:4 window:4+global:mask"), 24, marked)
    assert not moved(model("window:4*2"), 24)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_cost_of_a_classifier_equals_fvcores(kind: str) -> None:
    recipe, schedule = load_recipe("smoke-classes", [f"model.kind={kind}"]), Schedule.parse("full window:4")
    one = new_model(recipe, 18, schedule)
    traced = traced_flops(one, 40, 1)
    assert sum(traced.values()) == recipe_flops(recipe, 18, schedule)
    assert num_parameters(recipe.model, 18, 10) == sum(p.numel() for p in one.parameters())


class Marking:
    """A source, as far as marks go."""

    name, marked = "retrieval", 2


def test_spans_of_another_number_of_marks_are_refused() -> None:
    source: Any = Marking()
    check_marks(Schedule.parse("full window:4+global:mask:2"), source)
    with pytest.raises(LayersearchError, match=r"marks 2 tokens of a sequence; write '\+global:mask:2'"):
        check_marks(Schedule.parse("window:4+global:mask"), source)
    source.marked = 0
    with pytest.raises(LayersearchError, match=r"marks no tokens of a sequence; write '\+global:first:G'"):
        check_marks(Schedule.parse("window:4+global:mask"), source)


@pytest.mark.integration
def test_trial_of_a_classifier_learns_with_its_marked_token(tmp_path: Path, cache_dir: Path) -> None:
    recipe = load_recipe("smoke-classes", ["training.steps=20"])
    pool = LocalPool(recipe, 1, tmp_path, cache_dir)
    try:
        record = pool.submit(Trial(schedule=Schedule.parse("full window:4+global:mask"), seed=0)).result()
    finally:
        pool.close()
    assert record.state == "complete", record.error
    found = dict(record.metrics)
    assert 0.0 <= found["accuracy"] <= 1.0
    assert 0.0 < found["majority"] < 1.0
    assert record.position_edges == (1,)
