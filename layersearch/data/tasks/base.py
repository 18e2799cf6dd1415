"""The base class of generated tasks: every sequence is made from its own row of uniform random numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, Batch, KnownAnswer, Source, Tokens, digest, generator, require

TRAIN, VALIDATION = 0, 1
"""First word of the generator's key: training and validation never share a stream."""

Uniform = npt.NDArray[np.float64]


class Task(Source):
    """A task whose sequences are generated and whose answer is known.

    A task names the ``keys`` of the data section that it reads. `plan` checks them and divides the uniform numbers of a
    sequence into parts; `generate` makes sequences from these parts. A sequence length or a vocabulary that is too
    small for the task raises a `DataError`.
    """

    version: ClassVar[int] = 1
    """Raised with every change that alters the sequences, because the fingerprint does not see code."""
    keys: ClassVar[tuple[str, ...]]
    """Keys of the data section that the task reads, beside ``vocab_size``."""

    def __init__(self, config: DataConfig, seq_len: int, beside: int = 0) -> None:
        self.seq_len, self.vocab_size, self._fillers = seq_len, config.vocab_size, config.fillers
        self._beside = beside  # tokens of a whole sequence that are not the task's; messages speak of the whole
        self.config = replace(config, fillers=config.fillers or max(1, config.vocab_size // 8))
        parameters = {key: getattr(self.config, key) for key in self.keys}
        self.details = {"parameters": parameters}
        facts = {"version": self.version, "seq_len": seq_len, "vocab_size": self.vocab_size, "parameters": parameters}
        self.fingerprint = digest({"task": self.name, **facts})
        self.widths, self.answer = self.plan(self.config)

    @abstractmethod
    def plan(self, config: DataConfig) -> tuple[Sequence[int], KnownAnswer]:
        """Check the settings; ``fillers`` is not None. Return the uniform numbers per part and the known answer."""

    @abstractmethod
    def generate(self, parts: Sequence[Uniform], evaluating: bool) -> Batch:
        """Make sequences.

        Args:
            parts: numbers in [0, 1), [sequences, width] for each width of `plan`. Row s decides sequence s alone.
            evaluating: score the task's own answers only; else also the tokens that help to learn it.
        """

    def need_length(self, least: int, cause: str, more: str = "") -> int:
        """Require a sequence of ``least`` tokens; return the tokens to spare."""
        whole, enough = self.seq_len + self._beside, least + self._beside
        message = f"training.seq_len {whole} is too short for {cause}: raise it to {enough}{more}"
        require(self.seq_len >= least, message)
        return self.seq_len - least

    def need_vocabulary(self, tokens: int, cause: str) -> None:
        """Require a vocabulary of ``tokens`` tokens beside the filler."""
        # Without a setting, v // 8 tokens are filler: v - v // 8 reaches n at v = n + (n - 1) // 7.
        least = tokens + (self._fillers or max(1, (tokens - 1) // 7))
        message = f"data.vocab_size {self.vocab_size} is too small for {cause}: raise it to {least}"
        require(self.vocab_size >= least, message)

    def _draw(self, sequences: int, *key: int) -> Batch:
        uniform = generator(*key).random((sequences, sum(self.widths)))
        parts = np.split(uniform, np.cumsum(self.widths)[:-1], axis=1)
        return self.generate(parts, evaluating=key[0] == VALIDATION)

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self._draw(batch_size, TRAIN, seed, step)

    def validation(self, sequences: int) -> Batch:
        return self._draw(sequences, VALIDATION)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of scored answers that were predicted, in [0, 1]."""
        return {f"{self.name}_accuracy": float(correct[batch.targets != IGNORE].mean())}


def next_token(stream: Tokens, scored: npt.NDArray[np.bool_]) -> Batch:
    """Return the batch that predicts the scored tokens of a stream; both are [sequences, seq_len + 1]."""
    return Batch(stream[:, :-1], np.where(scored, stream, IGNORE)[:, 1:])


def to_integers(uniform: Uniform, limit: int) -> Tokens:
    """Map numbers in [0, 1) to integers in [0, limit)."""
    return (uniform * limit).astype(np.int64)


def choose(uniform: Uniform, count: int) -> Tokens:
    """Return ``count`` different column indices in random order for each row, [sequences, count]."""
    return np.argsort(uniform, axis=1)[:, :count]


def spread(compact: Tokens, uniform: Uniform, slack: int) -> Tokens:
    """Move items apart, [sequences, items]. Their order and their least distances stay.

    Args:
        compact: positions in the closest packing, [items].
        uniform: numbers in [0, 1), [sequences, items].
        slack: tokens to spare.
    """
    return compact + np.sort(to_integers(uniform, slack + 1), axis=1)
