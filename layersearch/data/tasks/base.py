"""What generated tasks share: every sequence is drawn from its own row of uniform numbers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import IGNORE, Batch, Source, Tokens, digest, generator

TRAIN, VALIDATION = 0, 1
"""First word of the generator's key: training and validation never share a stream."""


class Task(Source):
    """A task whose sequences are generated and whose answer is known.

    A task states its `parameters`, how many uniform numbers one sequence needs (`draws`) and how it makes sequences
    of them (`generate`).

    Raises:
        UserError: if the sequence length or the vocabulary cannot hold the task; names the key.
    """

    version: int = 1
    """Raised with every change that alters the sequences, since the fingerprint cannot see code."""
    draws: int
    """Uniform numbers one sequence needs."""

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        self.seq_len, self.vocab_size = seq_len, config.vocab_size
        self.details = {"parameters": self.parameters(config)}
        self.fingerprint = digest(
            {
                "task": self.name,
                "version": self.version,
                "seq_len": seq_len,
                "vocab_size": config.vocab_size,
                "parameters": self.parameters(config),
            }
        )

    @abstractmethod
    def parameters(self, config: DataConfig) -> dict[str, Any]:
        """Return the settings that this task reads, beside its vocabulary and length."""

    @abstractmethod
    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        """Make sequences.

        Args:
            uniform: numbers in [0, 1), [sequences, draws]; row s decides sequence s and nothing else.
            judged: score only what the task is judged by; else also what helps to learn it.
        """

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self.generate(generator(TRAIN, seed, step).random((batch_size, self.draws)), judged=False)

    def validation(self, sequences: int) -> Batch:
        return self.generate(generator(VALIDATION).random((sequences, self.draws)), judged=True)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of scored answers that were predicted, in [0, 1]."""
        return {f"{self.name}_accuracy": float(correct[batch.targets != IGNORE].mean())}


def next_token(stream: Tokens, scored: npt.NDArray[np.bool_]) -> Batch:
    """Return the batch in which the scored tokens of a stream are predicted, both [sequences, seq_len + 1]."""
    return Batch(stream[:, :-1], np.where(scored, stream, IGNORE)[:, 1:])


def filler_kinds(config: DataConfig, vocab_size: int) -> int:
    """Return how many token ids, from 0 up, are filler."""
    return config.fillers or max(1, vocab_size // 8)


def below(uniform: npt.NDArray[np.float64], limit: int) -> Tokens:
    """Return whole numbers in [0, limit) of numbers in [0, 1)."""
    return (uniform * limit).astype(np.int64)


def spread(compact: Tokens, uniform: npt.NDArray[np.float64], slack: int) -> Tokens:
    """Move items apart: each is shifted by its rank in the slack, which keeps their order and their least distances.

    Args:
        compact: places in the closest packing, [items].
        uniform: numbers in [0, 1), [sequences, items].
        slack: tokens to spare.

    Returns:
        Places, [sequences, items].
    """
    return compact + np.sort(below(uniform, slack + 1), axis=1)
