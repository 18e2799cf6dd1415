"""Text and recall in one source. Each has its own loss; recall shows failures that the loss on text hides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.source import Batch, Source, Tokens, digest
from layersearch.data.tasks.recall import Recall
from layersearch.data.text import Text, open_text


class Mix(Source):
    """Sequences of the standard library's text and of recall; the token ids of recall follow those of the text.

    Sequence s of a batch is recall where floor((s + 1) share) exceeds floor(s share), with share ``recall_share``. This
    spreads recall evenly, and a smaller batch is a prefix of a larger one. ``text`` is an opened text to take in place
    of this Python's standard library.
    """

    name = "mix"

    def __init__(self, config: DataConfig, seq_len: int, cache: Path, text: Text | None = None) -> None:
        self.text = text or open_text(replace(config, source="stdlib"), seq_len, cache)
        self.recall = Recall(replace(config, source="recall", vocab_size=config.recall_vocab), seq_len)
        self.seq_len, self.share = seq_len, config.recall_share
        self.vocab_size = self.text.vocab_size + self.recall.vocab_size
        self.tokenizer_file, self.reading = self.text.tokenizer_file, self.text.reading
        self.fingerprint = digest([self.text.fingerprint, self.recall.fingerprint, self.share])
        own = {"recall_share": self.share, "recall_vocab": self.recall.vocab_size}
        self.details = {**self.text.details, **self.recall.details, **own}
        self.answer = self.recall.answer

    def recall_rows(self, sequences: int) -> npt.NDArray[np.bool_]:
        """Return the mask of the recall sequences of a batch, [sequences]."""
        count = np.floor(np.arange(sequences + 1) * self.share)
        return count[1:] > count[:-1]

    def _join(self, text: Batch, recall: Batch) -> Batch:
        rows = self.recall_rows(len(text.tokens) + len(recall.tokens))
        above = self.text.vocab_size

        def join(words: Tokens, keys: Tokens) -> Tokens:
            joined = np.empty((len(rows), self.seq_len), dtype=np.int64)
            joined[~rows], joined[rows] = words, np.where(keys >= 0, keys + above, keys)
            return joined

        return Batch(join(text.tokens, recall.tokens), join(text.targets, recall.targets))

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        recall = int(self.recall_rows(batch_size).sum())
        return self._join(
            self.text.train(seed=seed, step=step, batch_size=batch_size - recall),
            self.recall.train(seed=seed, step=step, batch_size=recall),
        )

    def validation(self, sequences: int) -> Batch:
        recall = int(self.recall_rows(sequences).sum())
        return self._join(self.text.validation(sequences - recall), self.recall.validation(recall))

    def groups(self, batch: Batch) -> Mapping[str, npt.NDArray[np.bool_]]:
        rows = self.recall_rows(len(batch.tokens))
        return {
            name: np.broadcast_to(part[:, None], batch.tokens.shape)
            for name, part in (("text", ~rows), ("recall", rows))
            if part.any()
        }

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the metrics of recall alone."""
        rows = self.recall_rows(len(batch.tokens))
        return self.recall.metrics(correct[rows], Batch(batch.tokens[rows], batch.targets[rows])) if rows.any() else {}
