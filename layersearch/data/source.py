"""A source of training sequences: pure functions of seed and step, and a fingerprint of what they return."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from layersearch.errors import UserError

IGNORE = -100
"""Target of a token whose prediction is not scored; PyTorch's default ``ignore_index``."""

Tokens = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Sequences and what to predict in them, both int64 of shape [sequences, seq_len]."""

    tokens: Tokens
    targets: Tokens
    """``targets[s, t]`` is the token to predict after ``tokens[s, : t + 1]``, or `IGNORE`."""


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """The planted truth of a generated task."""

    optimal_l: int
    """The least number of full layers that solves the task; a lower bound unless ``exact``."""
    note: str
    """The condition under which that holds."""
    source: str
    """Where the argument is made."""
    stepwise_l: int | None = None
    """Full layers of the step-by-step solution, which training may find in place of a shorter one; None: no others."""
    exact: bool = True
    """False: fewer than ``optimal_l`` cannot do, but whether so many can is not known."""


class Source(ABC):
    """What a trial reads.

    Batches depend on (seed, step) and the fingerprint only: not on the schedule, the number of ranks, or which steps
    were asked for before. A smaller batch of the same step is a prefix of a larger one.
    """

    name: str
    """The kind of source, for example ``stdlib``."""
    seq_len: int
    """Tokens in a sequence."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    fingerprint: str
    """SHA-256 (hex) over everything that determines the batches."""
    tokenizer_file: Path | None = None
    """The ``tokenizer.json`` that made the tokens; None for a generated task."""
    answer: KnownAnswer | None = None
    """The planted truth; None for text."""
    details: Mapping[str, Any]
    """Further facts for the run folder: token and document counts, or the task's parameters."""

    @abstractmethod
    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        """Return the training batch of one optimiser step.

        Args:
            seed: non-negative; the data order.
            step: non-negative; the optimiser step.
            batch_size: sequences, over all ranks.
        """

    @abstractmethod
    def validation(self, sequences: int) -> Batch:
        """Return the validation set: the same for every seed, and never trained on.

        Raises:
            UserError: if there is less validation text than that.
        """

    def groups(self, batch: Batch) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Return named parts of a batch, [sequences, seq_len] each, whose losses are reported beside the whole."""
        return {}

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return named measures beside the loss.

        Args:
            correct: whether the most likely next token was the target, [sequences, seq_len].
            batch: the batch that was predicted.
        """
        return {}


def generator(*key: int) -> np.random.Generator:
    """Return a random generator that depends on a tuple of non-negative integers only."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def digest(facts: Any) -> str:
    """Return the SHA-256 (hex) of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require(holds: bool, message: str) -> None:
    """Raise a `UserError` with this message unless the condition holds."""
    if not holds:
        raise UserError(message)
