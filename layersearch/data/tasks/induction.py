"""What followed the trigger: random tokens, one trigger in them, and the trigger again at the end.

    x x x ^ v x x x x x x x x x x x ^        → v

The task is the induction head of H3 (2212.14052, sec. 3.1), the trigger at least ``distance`` tokens before its answer
is asked for. Only the last token is scored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, below, next_token

TRIGGER = 0


class Induction(Task):
    """See the module; ``distance`` and ``vocab_size`` (the trigger counted) come from the recipe's data section."""

    name = "induction"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        self.distance = config.distance
        require(config.vocab_size >= 3, "data.vocab_size 2 leaves nothing to recall: raise it to at least 3")
        self.places = seq_len - 1 - config.distance
        require(
            self.places >= 1,
            f"training.seq_len {seq_len} is too short for data.distance {config.distance}: raise it to "
            f"{config.distance + 2} or lower data.distance",
        )
        self.draws = seq_len + 2
        self.answer = KnownAnswer(
            optimal_l=1,
            note=f"one full layer above a local one is needed and enough while the local layers' reaches add up to "
            f"less than {config.distance} tokens",
            source="induction heads (2209.11895); H3 (2212.14052, sec. 3.1)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {"distance": config.distance}

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        rows = np.arange(len(uniform))
        place = below(uniform[:, 0], self.places)
        stream = 1 + below(uniform[:, 1:], self.vocab_size - 1)
        stream[rows, place] = stream[:, -2] = TRIGGER
        stream[:, -1] = stream[rows, place + 1]
        scored = np.zeros(stream.shape, dtype=bool)
        scored[:, -1] = True
        return next_token(stream, scored)
