"""Text as a packed, memory-mapped stream of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.data.source import Batch, Source, digest, generator, require

SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class Text(Source):
    """Documents in their order, an end-of-document token after each, cut into sequences.

    A training sequence starts at a random offset of the stream, so it keeps the long distances of a file. Validation
    sequences are spread evenly over their stream and never overlap.

    Raises:
        DataError: if there is less text than one sequence.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], name: str, seq_len: int) -> None:
        self.name, self.seq_len, self.vocab_size = name, seq_len, facts["vocab_size"]
        self.tokenizer_file = folder / "tokenizer.json"
        self.details = {key: value for key, value in facts.items() if key not in ("content", "vocab_size")}
        self.fingerprint = digest([facts["content"], name, seq_len, SAMPLING])
        self._train = np.load(folder / "train.npy", mmap_mode="r", allow_pickle=False)
        self._validation = np.load(folder / "validation.npy", mmap_mode="r", allow_pickle=False)
        key, self._remedy = {
            "stdlib": ("data.source stdlib", "raise data.max_tokens"),
            "hub": ("data.dataset", "raise data.max_tokens, name a larger data set"),
        }.get(name, ("data.files", "name more text in data.files"))
        for stream, what in ((self._train, "training"), (self._validation, "validation")):
            require(
                len(stream) > seq_len,
                f"{key} gives {len(stream)} tokens of {what} text, fewer than one sequence of {seq_len} + 1: "
                f"{self._remedy} or lower training.seq_len",
            )

    def _cut(self, stream: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> Batch:
        windows = stream[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        starts = generator(seed, step).integers(len(self._train) - self.seq_len, size=batch_size)
        return self._cut(self._train, starts)

    def validation(self, sequences: int) -> Batch:
        most = (len(self._validation) - 1) // self.seq_len
        require(
            sequences <= most,
            f"training.val_sequences {sequences} is more than the validation text holds: lower it to {most}, or "
            f"{self._remedy}",
        )
        return self._cut(self._validation, np.arange(sequences) * (len(self._validation) - 1) // sequences)
