"""Masked language modeling: tokens of a text are hidden, and the model restores them (BERT, 1810.04805, sec. 3.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.data.source import IGNORE, Batch, Source, digest, generator

HIDDEN, RANDOM = 0.8, 0.1
"""Shares of the predicted tokens that become the mask token and a random token; the others stay, as in BERT."""
SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class Masked(Source):
    """A text whose masked tokens are predicted in place; the mask token's id follows those of the text.

    Each sequence has the same number of predicted tokens, drawn anew at every step. Validation has the same ones for
    every seed.

    Args:
        text: the source of the sequences; its targets are not used.
        share: share of the tokens of a sequence that are predicted; at least one token is.
    """

    def __init__(self, text: Source, share: float) -> None:
        self.text, self.share = text, share
        self.name, self.seq_len, self.mask_token = text.name, text.seq_len, text.vocab_size
        self.vocab_size = text.vocab_size + 1
        self.tokenizer_file, self.reading = text.tokenizer_file, text.reading
        self.fingerprint = digest([text.fingerprint, "masked", share, SAMPLING])
        self.count = max(1, round(share * self.seq_len))
        self.details = {**text.details, "mask_share": share, "mask_token": self.mask_token}

    def _mask(self, tokens: npt.NDArray[np.int64], random: np.random.Generator) -> Batch:
        # One draw for all rows in order: a smaller batch is a prefix of a larger one.
        order, fate, other = np.moveaxis(random.random((*tokens.shape, 3)), -1, 0)
        chosen = np.zeros(tokens.shape, dtype=bool)
        np.put_along_axis(chosen, np.argsort(order, axis=1)[:, : self.count], True, axis=1)
        targets = np.where(chosen, tokens, IGNORE)
        seen = np.where(chosen & (fate < HIDDEN), self.mask_token, tokens)
        swapped = chosen & (fate >= HIDDEN) & (fate < HIDDEN + RANDOM)
        return Batch(np.where(swapped, (other * self.text.vocab_size).astype(np.int64), seen), targets)

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        batch = self.text.train(seed=seed, step=step, batch_size=batch_size)
        return self._mask(batch.tokens, generator(seed, step, 1))

    def validation(self, sequences: int) -> Batch:
        return self._mask(self.text.validation(sequences).tokens, generator(0, 2))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of the predicted tokens that were restored."""
        return {"accuracy": float(correct[batch.targets != IGNORE].mean())}
