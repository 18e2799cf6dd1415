"""Classes of local texts, byte by byte: to which group a passage belongs, and whether two passages are of one file.

They stand in for the Long Range Arena's text classification and retrieval (2011.04006, sec. 2.2.2 and 2.2.3), whose
data are other people's: reviews of films, and papers that cite one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.classes.examples import CONTENT, SEPARATOR, Example, Maker
from layersearch.data.documents import identity, read_documents
from layersearch.data.reading import Reading
from layersearch.data.source import require
from layersearch.data.text import split_documents

SEED = 2011


class TextClasses(Maker):
    """Passages of texts; each entry of ``data.files`` is a class. Longer texts give several passages."""

    name = "text_classes"
    contents = 256

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        require(
            len(config.files) > 1, "data.source text_classes: name two or more files or folders, each of them a class"
        )

    def identity(self) -> list[Any]:
        return [identity(_of(self.config, (entry,))) for entry in self.config.files]

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        sides: tuple[list[Example], list[Example]] = ([], [])
        for label, entry in enumerate(self.config.files):
            split = split_documents(list(read_documents(_of(self.config, (entry,)), Reading())))
            for side, texts in zip(sides, split[:2], strict=True):
                size = self.seq_len - 1
                side += [Example(passage, label) for text in texts for passage in _passages(text, size, 1)]
        random = np.random.Generator(np.random.Philox(SEED))
        return [[side[at] for at in random.permutation(len(side))] for side in sides]  # type: ignore[return-value]


class Retrieval(Maker):
    """Two passages, and whether they are of one file: half of the pairs are."""

    name = "retrieval"
    contents = 256

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.half = (seq_len - 2) // 2
        require(self.half >= 1, f"training.seq_len {seq_len} is too short for two passages: raise it to 4 or more")
        self.marks = (0, 1 + self.half)

    def identity(self) -> Any:
        return identity(_of(self.config, self.config.files))

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        documents = list(read_documents(_of(self.config, self.config.files), Reading()))
        train, held, _ = split_documents(documents)
        return self._pairs(train, 0), self._pairs(held, 1)

    def _pairs(self, texts: list[str], stream: int) -> Iterator[Example]:
        cut = [passages for text in texts if len(passages := _passages(text, self.half, self.half)) > 1]
        require(
            len(cut) > 1,
            f"data.source retrieval needs two files or more with two passages of {self.half} bytes, for training and "
            "for validation: lower training.seq_len, or name more text in data.files",
        )
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((SEED, stream))))
        while True:
            same = bool(random.integers(2))
            one, other = random.choice(len(cut), size=2, replace=False)
            first, second = random.choice(len(cut[one]), size=2, replace=False)
            right = cut[one][second] if same else cut[other][random.integers(len(cut[other]))]
            yield Example([*cut[one][first], SEPARATOR, *right], int(same))


def _of(config: DataConfig, files: tuple[str, ...]) -> DataConfig:
    return replace(config, source="files", files=files)


def _passages(text: str, size: int, least: int) -> list[list[int]]:
    """Cut a text into passages of so many bytes; the last one has ``least`` bytes or more, or is left out."""
    held = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + CONTENT
    parts = (held[first : first + size] for first in range(0, len(held), size))
    return [part.tolist() for part in parts if len(part) >= least]
