"""Retrieval during a conversion: how many digits of hidden facts a model still finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from layersearch.data.source import IGNORE, Batch
from layersearch.data.tokenizer import open_tokenizer
from layersearch.selection.retrieval import Example, make_example
from layersearch.training.engine import RankGroup
from layersearch.training.evaluate import validate

FIRST = 1_000_000
"""Number of the first example. A selection counts from 0, so none of its examples is measured here."""


class Retrieval:
    """Examples of some tasks, to measure at every evaluation.

    Args:
        tokenizer: as ``data.tokenizer``: the model's own.
        tasks: keys of `layersearch.selection.retrieval.TASKS`.
        seq_len: tokens that the model sees.
        count: examples; each asks for one answer of every task.

    Raises:
        LayersearchError: the texts are too short for the tasks, or there is no tokenizer.
    """

    def __init__(self, tokenizer: str, tasks: Sequence[str], *, seq_len: int, count: int) -> None:
        opened, _ = open_tokenizer(tokenizer)
        self.examples: list[Example] = [
            make_example(opened, tasks, seq_len=seq_len + 1, number=FIRST + n, seed=0) for n in range(count)
        ]
        tokens = torch.stack([example.tokens for example in self.examples]).numpy()
        targets = np.full_like(tokens, IGNORE)
        for row, example in enumerate(self.examples):
            for answer in example.answers:
                targets[row, answer.start : answer.stop] = tokens[row, answer.start : answer.stop]
        self.batch = Batch(tokens[:, :-1].copy(), targets[:, 1:].copy())

    def measure(
        self, token_losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], rows_at_once: int, group: RankGroup
    ) -> dict[str, float]:
        """Return ``accuracy_TASK``, the share of its digits that the model predicts, and the means of all tasks.

        ``answer_accuracy`` is the mean over tasks, ``answer_loss`` that of the digits' cross-entropy in nats. Every
        rank must call this; arguments as of `layersearch.training.evaluate.validate`.
        """
        found = validate(token_losses, self.batch, rows_at_once, group)
        right: dict[str, list[float]] = {}
        losses: list[float] = []
        for row, example in enumerate(self.examples):
            for answer in example.answers:
                place = slice(answer.start - 1, answer.stop - 1)
                right.setdefault(answer.task, []).append(float(found.correct[row, place].mean()))
                losses.append(float(found.losses[row, place].mean()))
        levels = {f"accuracy_{task}": fmean(shares) for task, shares in right.items()}
        return levels | {"answer_accuracy": fmean(levels.values()), "answer_loss": fmean(losses)}
