"""Generated tasks for models with an encoder, which sees the whole sequence: its answers are hidden from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, TOLD, Batch, Source, digest, generator
from layersearch.data.tasks import TASKS

HIDING = 1
"""Raised with every change of what is hidden, because the fingerprint does not see code."""
DIRECT = 0.5
"""Share of the queries by name that are asked by their key in training; 0 was not learned in 500 steps, 0.5 was."""


class HiddenAnswers(Source):
    """A generated task of which an encoder reads the answers from the queries.

    An answer is predicted at the last token of its query, as in a decoder. Where it stands behind its query, as in
    recall, a mask token stands instead. The mask token's id follows those of the task.

    Args:
        config: the data section; it names a task with answers.
        seq_len: tokens in a sequence.

    Example:
        >>> from layersearch.config.data import DataConfig
        >>> from layersearch.data.answers import HiddenAnswers
        >>> config = DataConfig(source="recall", vocab_size=32, pairs=2, queries=1, distance=4)
        >>> source = HiddenAnswers(config, 16)
        >>> batch = source.train(seed=0, step=0, batch_size=1)
        >>> batch.tokens.max() <= source.mask_token == 32, int((batch.targets >= 0).sum())
        (True, 1)
    """

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        self.task = TASKS[config.source](config, seq_len)
        self.name, self.seq_len, self.mask_token = self.task.name, seq_len, self.task.vocab_size
        self.vocab_size, self.answer = self.mask_token + 1, self.task.answer
        self.fingerprint = digest([self.task.fingerprint, "hidden answers", HIDING])
        self.details = {**self.task.details, "mask_token": self.mask_token}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self._hide(self.task.train(seed=seed, step=step, batch_size=batch_size))

    def validation(self, sequences: int) -> Batch:
        return self._hide(self.task.validation(sequences))

    def _hide(self, batch: Batch) -> Batch:
        tokens = batch.tokens.copy()
        behind = tokens[:, 1:]  # a view: what stands behind each token
        behind[stands_behind(batch)] = self.mask_token
        return Batch(tokens, batch.targets)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the task's own metrics."""
        return self.task.metrics(correct, batch)


class WrittenAnswers(Source):
    """Recall for an encoder-decoder: the encoder reads the pairs, the decoder writes the answers of queries.

    With ``asked_in`` source, a sentinel stands in the source for each answer, and the target is each sentinel and its
    answer, as in T5's span corruption (1910.10683, section 3.1.4). The sentinels' ids follow those of the task, in the
    order of the queries, and the decoder's first token follows them. Otherwise the target is what the decoder is given
    (`TOLD`) and the answer: the key, in place of which the source has filler, token 0; or a sentinel that stands in the
    source before its key, in any order. Arguments are those of `HiddenAnswers`.

    Example:
        >>> from layersearch.config.data import DataConfig
        >>> from layersearch.data.answers import WrittenAnswers
        >>> config = DataConfig(source="recall", vocab_size=32, pairs=2, queries=2, distance=4, asked_in="target")
        >>> batch = WrittenAnswers(config, 24).train(seed=0, step=0, batch_size=1)
        >>> (batch.targets >= 0).tolist()
        [[False, True, False, True]]
    """

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        # The last answer may stand behind the task's last token: its sentinel takes one token more.
        self.task = TASKS[config.source](config, seq_len - 1, beside=1)
        self.queries, self.asked_in = config.queries, config.asked_in
        self.name, self.seq_len, self.target_len = self.task.name, seq_len, 2 * config.queries
        self.vocab_size = self.task.vocab_size + config.queries + 1
        self.answer = None  # what is known of a decoder's layers says nothing of two stacks
        form = [] if config.asked_in == "source" else [config.asked_in]
        self.fingerprint = digest([self.task.fingerprint, "written answers", HIDING, *form])
        self.details = {**self.task.details, "target_tokens": self.target_len}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        batch = self.task.train(seed=seed, step=step, batch_size=batch_size)
        return self._write(batch, generator(seed, step, 1), by_key=DIRECT)

    def validation(self, sequences: int) -> Batch:
        return self._write(self.task.validation(sequences), generator(0, 2), by_key=0.0)

    def _write(self, batch: Batch, random: np.random.Generator, by_key: float) -> Batch:
        rows = np.arange(len(batch.targets))[:, None]
        place = np.nonzero(batch.targets != IGNORE)[1].reshape(len(rows), self.queries)
        key, answer = batch.tokens[rows, place], batch.targets[rows, place]
        source = np.pad(batch.tokens, ((0, 0), (0, 1)))
        sentinel = np.broadcast_to(self.task.vocab_size + np.arange(self.queries), key.shape)
        if self.asked_in == "source":
            source[rows, place + 1] = asked = sentinel
        else:
            draw = random.random((*key.shape, 2))
            name = np.take_along_axis(sentinel, np.argsort(draw[..., 0], axis=1), axis=1)
            direct = draw[..., 1] < (1.0 if self.asked_in == "target" else by_key)
            source[rows, place], source[rows, place + 1] = np.where(direct, 0, name), np.where(direct, 0, key)
            asked = TOLD - np.where(direct, key, name)
        return Batch(source, np.stack([asked, answer], axis=2).reshape(len(rows), self.target_len))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of the answers that were written, in [0, 1]."""
        answers = (batch.targets >= 0) & (batch.targets < self.task.vocab_size)
        return {f"{self.name}_accuracy": float(correct[answers].mean())}


def stands_behind(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return where an answer stands in the stream, behind the token that predicts it: [sequences, seq_len - 1]."""
    answers = batch.targets[:, :-1]
    found: npt.NDArray[np.bool_] = (answers != IGNORE) & (batch.tokens[:, 1:] == answers)
    return found
