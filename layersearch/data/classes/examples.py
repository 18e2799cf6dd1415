"""Examples with one class each, drawn or read once and kept in the cache; and the source that gives them out.

Token 0 is padding, after the example. Token 1 begins each example: its residual stream may stand for the whole
(BERT's ``[CLS]``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from layersearch.config.data import DataConfig
from layersearch.data.cache import Prepared, prepared
from layersearch.data.source import Batch, Source, Tokens, digest, generator, require

PADDING, FIRST, SEPARATOR = 0, 1, 2
"""Token ids; those of an example's content begin at `CONTENT`."""
CONTENT = 3
SAMPLING = 1
"""Raised with every change of the sampling, because the fingerprint does not see code."""


class Example(NamedTuple):
    """The tokens of an example after the first one, and its class."""

    tokens: list[int]
    label: int


class Maker(ABC):
    """Makes the examples of a source; see the subclasses for what they are.

    Args:
        config: the data section.
        seq_len: tokens of an example, padding included.

    Raises:
        DataError: the settings do not fit; it names the key and the remedy.
    """

    name: ClassVar[str]
    """Name in ``data.source``."""
    version: ClassVar[int] = 1
    """Raised with every change that alters the examples."""
    published: ClassVar[int] = 20_000
    """Training examples if ``data.examples`` names none."""
    contents: int
    """Different tokens of the content."""
    marks: tuple[int, ...] = (0,)
    """Places that are marked for ``+global:mask``, counted from 0."""

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        self.config, self.seq_len = config, seq_len
        self.examples = config.examples or self.published
        self.held_out = max(1, min(2000, self.examples // 10))

    @abstractmethod
    def identity(self) -> Any:
        """Return plain data that changes when the examples do."""

    @abstractmethod
    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        """Return the examples of training and of validation; at most `examples` and `held_out` of them are used."""


class Examples(Source):
    """A fixed set of examples; a step draws from it at random. Each batch's target is the class, (sequences, 1)."""

    def __init__(self, maker: Maker, cache: Path) -> None:
        self.name, self.seq_len, self.vocab_size = maker.name, maker.seq_len, CONTENT + maker.contents
        self.places, self.marked = maker.marks, len(maker.marks)
        facts = [SAMPLING, maker.name, maker.version, maker.seq_len, maker.examples, maker.identity()]
        self.fingerprint = digest(facts)
        folder, self.details = prepared(cache, f"{maker.name}-{self.fingerprint[:20]}", lambda: _prepare(maker))
        self._tokens = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("train", "validation")}
        self._labels = {part: np.load(folder / f"{part}-classes.npy") for part in ("train", "validation")}

    def _batch(self, part: str, rows: npt.NDArray[np.int64]) -> Batch:
        tokens: Tokens = self._tokens[part][rows].astype(np.int64)
        marked = np.zeros(tokens.shape, dtype=bool)
        marked[:, self.places] = True
        return Batch(tokens, self._labels[part][rows].astype(np.int64)[:, None], marked)

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        rows = generator(seed, step).integers(len(self._labels["train"]), size=batch_size)
        return self._batch("train", rows)

    def validation(self, sequences: int) -> Batch:
        held = len(self._labels["validation"])
        require(
            sequences <= held,
            f"data.source {self.name} holds back {held} examples for training.val_sequences {sequences}: lower it, or "
            "give more examples (data.examples, data.files)",
        )
        return self._batch("validation", np.arange(sequences))

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        """Return the share of right classes, and that of always naming the most frequent one."""
        _, counts = np.unique(batch.targets, return_counts=True)
        return {"accuracy": float(correct.mean()), "majority": float(counts.max() / counts.sum())}


def _prepare(maker: Maker) -> Prepared:
    """Make the examples, pad them and count their classes."""
    streams: dict[str, npt.NDArray[np.unsignedinteger[Any]]] = {}
    facts: dict[str, Any] = {}
    for part, most, examples in zip(
        ("train", "validation"), (maker.examples, maker.held_out), maker.make(), strict=True
    ):
        rows, labels = [], []
        for example in examples:
            row = np.zeros(maker.seq_len, dtype="<u2")
            row[0], row[1 : 1 + len(example.tokens)] = FIRST, example.tokens
            rows.append(row)
            labels.append(example.label)
            if len(rows) == most:
                break
        require(rows, f"data.source {maker.name} gives no example of {part}; give more of it (data.files)")
        streams[part] = np.stack(rows)
        streams[f"{part}-classes"] = np.array(labels, dtype="<u2")
        facts[f"{part}_examples"] = len(rows)
        facts[f"{part}_classes"] = np.bincount(labels).tolist()
    facts["padded"] = round(float((streams["train"] == PADDING).mean()), 4)
    return Prepared(facts, streams, "{}")
