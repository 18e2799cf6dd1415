"""Retrieval at a conversion's evaluations: other examples than a selection's, and digits counted at their places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from layersearch.config.selection import DEPTHS
from layersearch.convert.retrieval import Retrieval
from layersearch.data.source import IGNORE
from layersearch.data.tokenizer import open_tokenizer
from layersearch.selection.retrieval import make_example
from layersearch.training.engine import RankGroup
from tests.helpers.selections import small_tokenizer

TASKS, TOKENS = ("pass_key", "several_keys"), 300


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def predicting(right: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return losses of 2 at every scored target, and whether the prediction is right."""
    return lambda tokens, targets: (2.0 * (targets != IGNORE), right(targets) & (targets != IGNORE))


def test_retrieval_examples_are_none_that_a_selection_measures(tokenizer: str) -> None:
    found = Retrieval(tokenizer, TASKS, seq_len=TOKENS, count=4)
    opened, _ = open_tokenizer(tokenizer)
    used = [make_example(opened, TASKS, seq_len=TOKENS + 1, number=n, seed=0).tokens for n in range(40)]
    assert not any(torch.equal(example.tokens, other) for example in found.examples for other in used)
    assert {answer.depth for example in found.examples for answer in example.answers} == set(DEPTHS)
    assert found.batch.tokens.shape == found.batch.targets.shape == (4, TOKENS)


def test_retrieval_measure_counts_the_digits_of_each_task(tokenizer: str) -> None:
    """The right predictions are those of the first task's answers."""
    found = Retrieval(tokenizer, TASKS, seq_len=TOKENS, count=2)
    first = torch.zeros(2, TOKENS, dtype=torch.bool)
    for row, example in enumerate(found.examples):
        for answer in example.answers:
            if answer.task == TASKS[0]:
                first[row, answer.start - 1 : answer.stop - 1] = True
    digits = int((torch.from_numpy(found.batch.targets) != IGNORE).sum())
    assert digits > int(first.sum()) > 0
    levels = found.measure(predicting(lambda targets: first), 2, RankGroup())
    assert levels == {
        "accuracy_pass_key": 1.0,
        "accuracy_several_keys": 0.0,
        "answer_accuracy": 0.5,
        "answer_loss": 2.0,
    }
