"""Span corruption: the encoder reads a text that lost spans, and the decoder writes them (T5, 1910.10683)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.config.corruption import Corruption
from layersearch.data.source import Batch, Source, Tokens, digest, generator

SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class LostSpans(Source):
    """A text of which spans are left out, drawn anew at every step. Validation has the same ones for every seed.

    The source has one sentinel for each span. The target is each sentinel and what it stands for. The sentinels' ids
    follow those of the text, in the order of the spans, and the decoder's first token follows them. All lengths are
    the same in every sequence, and so is the number of spans.

    Args:
        text: the source of the whole texts; its targets are not used.
        share: share of the tokens that are left out.
        lengths: those of a text and its parts.
    """

    def __init__(self, text: Source, share: float, lengths: Corruption) -> None:
        self.text, self.lengths = text, lengths
        self.name, self.seq_len, self.target_len = text.name, lengths.source, lengths.target
        self.vocab_size = text.vocab_size + lengths.spans + 1
        self.tokenizer_file, self.reading = text.tokenizer_file, text.reading
        self.fingerprint = digest([text.fingerprint, "lost spans", share, SAMPLING])
        self.details = {**text.details, "mask_share": share, "spans": lengths.spans, "target_tokens": lengths.target}

    def _corrupt(self, tokens: Tokens, random: np.random.Generator) -> Batch:
        lengths, rows = self.lengths, len(tokens)
        kept = lengths.text - lengths.lost
        # One draw for all rows in order: a smaller batch is a prefix of a larger one.
        order = random.random((rows, kept - 1 + lengths.lost - 1))
        stays = _parts(order[:, : kept - 1], kept, lengths.spans)
        goes = _parts(order[:, kept - 1 :], lengths.lost, lengths.spans)
        # Runs alternate: one that stays, one that goes.
        ends = np.cumsum(np.stack((stays, goes), axis=2).reshape(rows, -1), axis=1)
        run = (np.arange(lengths.text)[None, :, None] >= ends[:, None, :]).sum(axis=2)
        lost, span = run % 2 == 1, run // 2
        sentinel = self.text.vocab_size + np.arange(lengths.spans)
        begins = np.zeros((rows, lengths.text), dtype=bool)
        np.put_along_axis(begins, ends[:, :-1:2], True, axis=1)
        source = np.where(lost, sentinel[span], tokens)[~lost | begins].reshape(rows, lengths.source)
        # A span's tokens stand behind its sentinel.
        target = np.empty((rows, lengths.target), dtype=np.int64)
        place = np.cumsum(lost, axis=1) - 1 + span + 1
        at = np.nonzero(lost)
        target[at[0], place[at]] = tokens[at]
        first = np.cumsum(goes, axis=1) - goes + np.arange(lengths.spans)
        np.put_along_axis(target, first, np.broadcast_to(sentinel, first.shape), axis=1)
        return Batch(source, target)

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        batch = self.text.train(seed=seed, step=step, batch_size=batch_size)
        return self._corrupt(batch.tokens, generator(seed, step, 1))

    def validation(self, sequences: int) -> Batch:
        return self._corrupt(self.text.validation(sequences).tokens, generator(0, 2))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of the lost tokens that were written, each after the true ones before it."""
        return {"accuracy": float(correct[batch.targets < self.text.vocab_size].mean())}


def _parts(order: npt.NDArray[np.float64], tokens: int, count: int) -> Tokens:
    """Cut tokens into so many parts of at least one each, uniformly: (rows, tokens - 1) numbers -> (rows, count)."""
    cuts = np.sort(np.argsort(order, axis=1)[:, : count - 1] + 1, axis=1)
    edges = np.pad(cuts, ((0, 0), (1, 1)))
    edges[:, -1] = tokens
    return np.diff(edges, axis=1)
