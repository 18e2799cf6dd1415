"""A needle in a haystack: a marked key and its value at a given depth of random text, and a question at the end.

    x x x x x x ^ k v x x x x x x x x x x ^ k        → v

After the needle-in-a-haystack tests of long contexts (RULER, 2404.06654, sec. 3), with tokens in place of words. The
haystack holds keys and values too, but the marker only once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layersearch.config.recipe import DataConfig
from layersearch.data.source import Batch, KnownAnswer, require
from layersearch.data.tasks.base import Task, below, next_token

MARKER = 0


class Needle(Task):
    """See the module; ``depth`` and ``vocab_size`` (the marker counted) come from the recipe's data section."""

    name = "needle"

    def __init__(self, config: DataConfig, seq_len: int) -> None:
        super().__init__(config, seq_len)
        require(config.vocab_size >= 3, "data.vocab_size 2 leaves nothing to recall: raise it to at least 3")
        require(seq_len >= 5, f"training.seq_len {seq_len} is too short for a needle and a question: raise it to 5")
        self.place = round(config.depth * (seq_len - 5))
        # From the question's last token back to the value.
        self.distance = seq_len - 1 - (self.place + 2)
        self.draws = seq_len + 1
        self.answer = KnownAnswer(
            optimal_l=1,
            note=f"one full layer above a local one is needed and enough while the local layers' reaches add up to "
            f"less than {self.distance} tokens; with a longer reach 0 are",
            source="induction heads (2209.11895); RULER (2404.06654, sec. 3)",
        )

    def parameters(self, config: DataConfig) -> dict[str, Any]:
        return {"depth": config.depth}

    def generate(self, uniform: npt.NDArray[np.float64], judged: bool) -> Batch:
        stream = 1 + below(uniform, self.vocab_size - 1)
        stream[:, self.place] = stream[:, -3] = MARKER
        stream[:, -2:] = stream[:, self.place + 1 : self.place + 3]
        scored = np.zeros(stream.shape, dtype=bool)
        scored[:, -1] = True
        return next_token(stream, scored)
