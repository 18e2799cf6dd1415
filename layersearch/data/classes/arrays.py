"""Examples that the user has: arrays of whole numbers with a class each, such as pictures read row by row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.classes.examples import CONTENT, Example, Maker
from layersearch.data.source import require
from layersearch.errors import DataError

FORM = (
    "two .npz files, for training and for validation, each with x (examples, tokens) and y (examples,) of whole numbers"
)
MOST = 60_000
"""Different tokens: ids are kept in 16 bits."""


class Arrays(Maker):
    """The examples of two files."""

    name = "arrays"
    published = 10_000_000

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        require(len(config.files) == 2, f"data.source arrays: give {FORM}")
        self.held_out = self.examples
        parts = [_load(name) for name in config.files]
        for name, (x, y) in zip(config.files, parts, strict=True):
            whole = x.ndim == 2 and y.shape == x.shape[:1] and x.dtype.kind in "iu" and y.dtype.kind in "iu"
            require(whole and len(x), f"{name}: x {x.shape} {x.dtype} and y {y.shape} {y.dtype}; give {FORM}")
            require(x.shape[1] < seq_len, f"{name}: {x.shape[1]} tokens; raise training.seq_len to {x.shape[1] + 1}")
            require(x.min() >= 0 and x.max() < MOST, f"{name}: x must lie in 0 ... {MOST - 1}")
            most = config.classes or 0
            fits = y.min() >= 0 and y.max() < most
            require(fits, f"{name}: a class {y.max()} of data.classes {most}; they count from 0")
        self.parts = parts
        self.contents = int(max(x.max() for x, _ in parts)) + 1

    def identity(self) -> list[Any]:
        stamps = [Path(name).stat() for name in self.config.files]
        return [[stamp.st_size, stamp.st_mtime_ns] for stamp in stamps]

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        train, held = (
            (Example((row.astype(np.int64) + CONTENT).tolist(), int(label)) for row, label in zip(x, y, strict=True))
            for x, y in self.parts
        )
        return train, held


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(name, allow_pickle=False) as held:
            return held["x"], held["y"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"data.files {name}: {error}; give {FORM}") from None
