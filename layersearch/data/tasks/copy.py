"""A block of random tokens, filler, a marker, and the block again; the second block is scored.

    b1 b2 … bn . . . . . . | b1 b2 … bn

The copying memory problem of Arjovsky, Shah and Bengio (1511.06464), with filler of several kinds.
The block is as long as the sequence allows with ``distance`` tokens from a token to its copy's prediction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, below, filler_kinds, next_token


class Copy(Task):
    """See the module; ``distance`` and ``vocab_size`` come from the recipe's data section. Token 0 is the marker."""

    name = "copy"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.distance = config.distance
        self.fillers = filler_kinds(config, config.vocab_size)
        require(
            config.vocab_size - 1 - self.fillers >= 2,
            f"data.vocab_size {config.vocab_size} leaves fewer than 2 tokens to copy beside {self.fillers} kinds of "
            "filler and the marker: raise it",
        )
        # The stream holds the block, filler, the marker and the copy; a copy is predicted `distance` after its token.
        self.block = min(config.distance, seq_len - config.distance)
        require(
            self.block >= 1,
            f"training.seq_len {seq_len} is too short for data.distance {config.distance}: raise it to "
            f"{config.distance + 1} or lower data.distance",
        )
        self.draws = seq_len + 1
        self.answer = KnownAnswer(
            optimal_l=1,
            note=f"one full layer, anywhere, is needed and enough while the local layers' reaches add up to less than "
            f"{config.distance} tokens: the token to copy lies at a fixed distance, which positions alone can find",
            source="copying (1511.06464); rotary positions (2104.09864)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {"distance": config.distance, "fillers": filler_kinds(config, config.vocab_size)}

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        stream = 1 + below(uniform, self.fillers)
        block = 1 + self.fillers + below(uniform[:, : self.block], self.vocab_size - 1 - self.fillers)
        copy = self.distance + 1
        # Whatever the sequence has to spare follows the copy as filler.
        stream[:, : self.block] = block
        stream[:, copy - 1] = 0
        stream[:, copy : copy + self.block] = block
        scored = np.zeros(stream.shape, dtype=bool)
        scored[:, copy : copy + self.block] = True
        return next_token(stream, scored)
