"""What generated tasks share: every sequence is drawn from its own row of uniform numbers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.data.source import IGNORE, Batch, Source, Tokens, digest, generator
from layersearch.recipe import DataConfig

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
    def generate(self, uniform: npt.NDArray[np.float64]) -> tuple[Tokens, npt.NDArray[np.bool_]]:
        """Make sequences.

        Args:
            uniform: numbers in [0, 1), [sequences, draws]; row s decides sequence s and nothing else.

        Returns:
            The token stream and which of its tokens are answers to predict, both [sequences, seq_len + 1].
        """

    def _batch(self, rng: np.random.Generator, sequences: int) -> Batch:
        stream, answers = self.generate(rng.random((sequences, self.draws)))
        return Batch(stream[:, :-1], np.where(answers, stream, IGNORE)[:, 1:])

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self._batch(generator(TRAIN, seed, step), batch_size)

    def validation(self, sequences: int) -> Batch:
        return self._batch(generator(VALIDATION), sequences)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of scored answers that were predicted, in [0, 1]."""
        return {f"{self.name}_accuracy": float(correct[batch.targets != IGNORE].mean())}
