"""Generated tasks for models with an encoder, which sees the whole sequence: its answers are hidden from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layersearch.config.data import ASKED, DataConfig
from layersearch.data.source import IGNORE, TOLD, Batch, Source, digest
from layersearch.data.tasks import TASKS

HIDING = 1
"""Raised with every change of what is hidden, because the fingerprint does not see code."""


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
    """Recall for an encoder-decoder: the encoder reads the pairs and the queries, the decoder writes the answers.

    A sentinel stands in the source for each answer, and the target is each sentinel and its answer, as in T5's span
    corruption (1910.10683, section 3.1.4). The sentinels' ids follow those of the task, in the order of the queries,
    and the decoder's first token follows them. Arguments are those of `HiddenAnswers`.
    """

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        # The last answer may stand behind the task's last token: its sentinel takes one token more.
        self.task = TASKS[config.source](config, seq_len - 1, beside=1)
        self.queries = config.queries
        self.name, self.seq_len, self.target_len = self.task.name, seq_len, 2 * config.queries
        self.vocab_size = self.task.vocab_size + config.queries + 1
        self.answer = None  # what is known of a decoder's layers says nothing of two stacks
        self.fingerprint = digest([self.task.fingerprint, "written answers", HIDING])
        self.details = {**self.task.details, "target_tokens": self.target_len}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self._write(self.task.train(seed=seed, step=step, batch_size=batch_size))

    def validation(self, sequences: int) -> Batch:
        return self._write(self.task.validation(sequences))

    def _write(self, batch: Batch) -> Batch:
        scored = batch.targets != IGNORE
        source = np.pad(batch.tokens, ((0, 0), (0, 1)))
        sentinels = self.task.vocab_size + np.arange(self.queries)
        row, place = np.nonzero(scored)
        source[row, place + 1] = np.tile(sentinels, len(scored))
        answers = batch.targets[scored].reshape(len(scored), self.queries)
        target = np.stack([np.broadcast_to(sentinels, answers.shape), answers], axis=2)
        return Batch(source, target.reshape(len(scored), self.target_len))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of the answers that were written, in [0, 1]."""
        answers = batch.targets < self.task.vocab_size
        return {f"{self.name}_accuracy": float(correct[answers].mean())}


class GivenQueries(Source):
    """A task for an encoder-decoder whose decoder is given each query and writes its answer; only those are scored.

    The encoder reads the task's own sequence with filler, token 0, where queries and their answers stood. The decoder's
    first token follows the ids of the task. Arguments are those of `HiddenAnswers`.

    Example:
        >>> from layersearch.config.data import DataConfig
        >>> from layersearch.data.answers import GivenQueries
        >>> config = DataConfig(source="hops", vocab_size=32, pairs=2, queries=1, distance=4, asked_in="target")
        >>> source = GivenQueries(config, 24)
        >>> batch = source.train(seed=0, step=0, batch_size=1)
        >>> batch.targets.shape, int((batch.targets >= 0).sum())
        ((1, 2), 1)
    """

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        self.task = TASKS[config.source](config, seq_len)
        self.queries, self.asked = config.queries, ASKED[self.task.name]
        self.name, self.seq_len, self.target_len = self.task.name, seq_len, (self.asked + 1) * config.queries
        self.vocab_size = self.task.vocab_size + 1
        self.answer = None  # what is known of a decoder's layers says nothing of two stacks
        self.fingerprint = digest([self.task.fingerprint, "given queries", HIDING])
        self.details = {**self.task.details, "target_tokens": self.target_len}

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        return self._ask(self.task.train(seed=seed, step=step, batch_size=batch_size))

    def validation(self, sequences: int) -> Batch:
        return self._ask(self.task.validation(sequences))

    def _ask(self, batch: Batch) -> Batch:
        rows = np.arange(len(batch.targets))[:, None]
        # Queries are the last that is scored. What else is, helps a decoder to learn the task.
        place = np.stack([np.nonzero(scored)[0][-self.queries :] for scored in batch.targets != IGNORE])
        source = batch.tokens.copy()
        target = np.empty((len(source), self.queries, self.asked + 1), dtype=np.int64)
        for back in range(self.asked):
            target[:, :, self.asked - 1 - back] = TOLD - batch.tokens[rows, place - back]
            source[rows, place - back] = 0
        target[:, :, self.asked] = batch.targets[rows, place]
        behind = source[:, 1:]  # a view: what stands behind each token
        behind[stands_behind(batch)] = 0
        return Batch(source, target.reshape(len(source), self.target_len))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of the answers that were written, in [0, 1]."""
        return {f"{self.name}_accuracy": float(correct[batch.targets >= 0].mean())}


def stands_behind(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return where an answer stands in the stream, behind the token that predicts it: [sequences, seq_len - 1]."""
    answers = batch.targets[:, :-1]
    found: npt.NDArray[np.bool_] = (answers != IGNORE) & (batch.tokens[:, 1:] == answers)
    return found
