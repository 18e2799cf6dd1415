"""A source of training sequences: pure functions of seed and step, and a fingerprint of their result."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layersearch.data.reading import Reading
from layersearch.errors import DataError
from layersearch.schedule import Span

IGNORE = -100
"""Target of a token whose prediction is not scored; PyTorch's default ``ignore_index``."""
TOLD = IGNORE - 1
"""An encoder_decoder's target of ``TOLD - token``: its decoder reads the token next, and is not scored on it."""

Tokens = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Sequences and their targets, both int64 of shape [sequences, seq_len]; an encoder_decoder's targets differ."""

    tokens: Tokens
    targets: Tokens
    """``targets[s, t]`` is the token to predict after ``tokens[s, : t + 1]``, or `IGNORE`. In a masked text it is the
    token that stood at t. An encoder_decoder's may also be of `TOLD`. What is scored is 0 or more."""
    marked: npt.NDArray[np.bool_] | None = None
    """The tokens that the task marks to see all and be seen by all, of the same shape; None: it marks none."""

    def rows(self, rows: slice) -> Batch:
        """Return some of the sequences."""
        marked = None if self.marked is None else self.marked[rows]
        return Batch(self.tokens[rows], self.targets[rows], marked)


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """The known number of full layers of a generated task."""

    optimal_l: int
    """Least number of full layers that solves the task; a lower bound unless ``exact``."""
    note: str
    """Condition under which that holds."""
    source: str
    """Paper that makes the argument."""
    stepwise_l: int | None = None
    """Full layers of a step-by-step solution, which training may find instead. None: there is none."""
    exact: bool = True
    """False: fewer than ``optimal_l`` are not enough, but ``optimal_l`` may not be enough either."""


class Source(ABC):
    """The training data of a trial.

    Batches depend only on (seed, step) and the fingerprint: not on the schedule, the number of ranks, or earlier
    calls. A smaller batch of the same step is a prefix of a larger one.
    """

    name: str
    """Name in ``data.source``, for example ``stdlib``."""
    seq_len: int
    """Tokens in a sequence."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    fingerprint: str
    """SHA-256 (hex) over everything that determines the batches."""
    tokenizer_file: Path | None = None
    """Path of the ``tokenizer.json``; None for a generated task."""
    reading: Reading | None = None
    """How much text was read; None for a generated task."""
    marked: int = 0
    """Number of tokens that the task marks in each sequence."""
    answer: KnownAnswer | None = None
    """The known answer; None for text."""
    details: Mapping[str, Any]
    """Further facts for the run folder: token and document counts, or the task's parameters."""

    @abstractmethod
    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        """Return the training batch of one optimizer step, for all ranks; seed and step are 0 or more."""

    @abstractmethod
    def validation(self, sequences: int) -> Batch:
        """Return the validation set: the same for every seed, with no sequence of training.

        If the validation text holds fewer sequences, a `DataError` is raised.
        """

    def groups(self, batch: Batch) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Return masks [sequences, seq_len] of named parts of a batch; each part's loss is reported."""
        return {}

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return further metrics by name; ``correct`` [sequences, seq_len] tells where the top token is the target."""
        return {}


def generator(*key: int) -> np.random.Generator:
    """Return a random generator seeded by a tuple of non-negative integers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def digest(facts: Any) -> str:
    """Return the SHA-256 (hex) of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_marks(spans: Iterable[Span], source: Source) -> None:
    """Raise a `DataError` unless a task marks as many tokens as the spans of ``+global:mask:G`` say."""
    for span in spans:
        good, count = span.global_marked in (0, source.marked), source.marked
        noun = "token" if count == 1 else "tokens"
        remedy = f"write '+global:mask:{count}'" if count else "write '+global:first:G', or take a task that marks some"
        require(good, f"{span}: data.source {source.name} marks {count or 'no'} {noun} of a sequence; {remedy}")


def require(holds: object, message: str) -> None:
    """Raise a `DataError` with this message unless the condition holds."""
    if not holds:
        raise DataError(message)
