"""Contiguous streams of a text: each row goes on where it stood a step before (Transformer-XL, 1901.02860)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.data.source import IGNORE, Batch, Source, digest, generator
from layersearch.data.text import Text

SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class Streams(Source):
    """A text whose rows go on from step to step, and validation sequences that begin with unscored tokens.

    A row begins at a random place of the text and, at its end, goes on at its beginning. Documents follow one another
    with an end token between them, and nothing else is reset there.

    Args:
        text: the text.
        warm: tokens before each validation sequence that are not scored: they fill the memories.
    """

    def __init__(self, text: Text, warm: int) -> None:
        self.text, self.warm = text, warm
        self.name, self.seq_len, self.vocab_size = text.name, text.seq_len, text.vocab_size
        self.tokenizer_file, self.reading = text.tokenizer_file, text.reading
        self.fingerprint = digest([text.fingerprint, "streams", warm, SAMPLING])
        self.details = {**text.details, "warm_tokens": warm}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        first = generator(seed).integers(1 << 40, size=batch_size)
        return self.text.rows_from(first + step * self.seq_len)

    def validation(self, sequences: int) -> Batch:
        batch = self.text.validation_after(self.warm, sequences)
        targets = batch.targets.copy()
        targets[:, : self.warm] = IGNORE
        return Batch(batch.tokens, targets)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        return self.text.metrics(correct, batch)
