"""What every generated task must hold, beside what every source must."""

from __future__ import annotations

import numpy as np
import pytest

from layersearch.data.source import IGNORE
from layersearch.data.tasks import TASKS
from tests.helpers.tasks import SMALL, open_task


@pytest.mark.parametrize("name", TASKS)
def test_task_every_sequence_is_scored(name: str) -> None:
    batch = open_task(name, **SMALL[name]).validation(64)
    assert (batch.targets != IGNORE).any(axis=1).all()


@pytest.mark.parametrize("name", sorted({*TASKS} - {"hops", "coreference"}))  # whose answers are never written
def test_task_answer_is_the_next_token(name: str) -> None:
    batch = open_task(name, **SMALL[name]).validation(64)
    scored = batch.targets != IGNORE
    inside = scored[:, :-1]
    np.testing.assert_array_equal(batch.targets[:, :-1][inside], batch.tokens[:, 1:][inside])


@pytest.mark.parametrize("name", TASKS)
def test_task_constant_answer_stays_near_chance(name: str) -> None:
    """No single token answers much: the accuracy that needs no reading."""
    batch = open_task(name, **SMALL[name]).validation(2000)
    answers = batch.targets[batch.targets != IGNORE]
    _, counts = np.unique(answers, return_counts=True)
    assert counts.max() / len(answers) < 2.5 / len(counts)


@pytest.mark.parametrize("name", TASKS)
def test_task_accuracy_is_the_share_of_scored_answers(name: str) -> None:
    source = open_task(name, **SMALL[name])
    batch = source.validation(10)
    right = batch.targets != IGNORE
    assert source.metrics(right, batch) == {f"{name}_accuracy": 1.0}
    assert source.metrics(~right, batch) == {f"{name}_accuracy": 0.0}
    right[:5] = False
    assert source.metrics(right, batch)[f"{name}_accuracy"] == right.sum() / (batch.targets != IGNORE).sum()
