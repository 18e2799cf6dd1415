"""Generated tasks for models with an encoder, which sees the whole sequence: its answers are hidden from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.source import IGNORE, TOLD, Batch, Source, digest, generator, require
from layersearch.data.tasks import TASKS
from layersearch.data.tasks.recall import Recall

HIDING = 1
"""Raised with every change of what is hidden, because the fingerprint does not see code."""
BY_KEY = 0.5
"""Share of the queries of ``names`` that training asks by their key."""


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
    (`TOLD`) and the answer. With target it is given the key, and the source has filler in its place. With names it is
    given a key without a value, which stands before the queried key in the source: its name. Then training asks some
    queries by their key itself and leaves their names out. Arguments are those of `HiddenAnswers`.

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
        self.task = Recall(config, seq_len - 1, beside=1)
        self.queries, self.asked_in = config.queries, config.asked_in
        keys, need = self.task.first_value - self.task.first_key, config.pairs + config.queries
        message = f"data.vocab_size {config.vocab_size} has {keys} keys, and data.asked_in names takes {need}"
        enough = config.asked_in != "names" or keys >= need
        require(enough, f"{message}, one for each of data.pairs and data.queries: raise it, or lower one of them")
        self.name, self.seq_len, self.target_len = self.task.name, seq_len, 2 * config.queries
        self.vocab_size = self.task.vocab_size + config.queries + 1
        self.answer = None  # what is known of a decoder's layers says nothing of two stacks
        form = [] if config.asked_in == "source" else [config.asked_in]
        self.fingerprint = digest([self.task.fingerprint, "written answers", HIDING, *form])
        self.details = {**self.task.details, "target_tokens": self.target_len}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        batch = self.task.train(seed=seed, step=step, batch_size=batch_size)
        return self._write(batch, generator(seed, step, 1), by_key=BY_KEY)

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
            first, end = self.task.first_key, self.task.first_value
            draw = random.random((len(rows), self.queries + end - first))  # one for all rows in order
            direct = draw[:, : self.queries] < (1.0 if self.asked_in == "target" else by_key)
            # Names are keys that the sequence lacks, in any order.
            order = draw[:, self.queries :]
            row, used = np.nonzero((batch.tokens >= first) & (batch.tokens < end))
            order[row, batch.tokens[row, used] - first] = 1.0
            name = first + np.argsort(order, axis=1)[:, : self.queries]
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
