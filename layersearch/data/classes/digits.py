"""MNIST-1D: digits as curves, one value a token (Greydanus and Kobak, 2011.14439). For sequential digits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import numpy as np

from layersearch.config.data import DataConfig
from layersearch.data.classes.examples import CONTENT, Example, Maker
from layersearch.data.source import require

LEVELS = 256
RANGE = 4.0
"""Values are standardized; those farther from 0 get the outermost level."""
LONG = 8
"""Padding and shifts are those of the published set, scaled to the length, so that a curve stays as wide."""


class Digits(Maker):
    """Curves of ten digits, of any length."""

    name = "digits"
    contents = LEVELS

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        found = importlib.util.find_spec("mnist1d") is not None
        require(found, "data.source digits needs the package mnist1d: pip install 'layersearch[digits]'")
        require(seq_len >= LONG, f"training.seq_len {seq_len} is too short for a curve: raise it to {LONG} or more")

    def identity(self) -> int:
        return LEVELS

    def make(self) -> tuple[Iterable[Example], Iterable[Example]]:
        from mnist1d.data import get_dataset_args, make_dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]

        args, length = get_dataset_args(), self.seq_len - 1
        total = self.examples + self.held_out
        args.num_samples = -(-total // 10) * 10
        args.train_split = self.examples / args.num_samples
        args.final_seq_length = length
        state = np.random.get_state()  # the package seeds NumPy's global generator
        try:
            made = make_dataset(args)
        finally:
            np.random.set_state(state)
        return _examples(made["x"], made["y"]), _examples(made["x_test"], made["y_test"])


def _examples(x: np.ndarray, y: np.ndarray) -> Iterable[Example]:
    levels = np.clip((x + RANGE) * (LEVELS / (2 * RANGE)), 0, LEVELS - 1).astype(np.int64) + CONTENT
    return [Example(row.tolist(), int(label)) for row, label in zip(levels, y, strict=True)]
