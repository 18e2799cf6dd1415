"""The data of a training in stages: one source for each length, and each optimizer step knows its stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from layersearch.config.stages import Steps
from layersearch.data.source import Batch, Source, digest


class Staged(Source):
    """Sources of one kind and several lengths; validation and all facts are the last one's.

    Args:
        sources: one for each stage.
        steps: the optimizer steps of each stage.
    """

    def __init__(self, sources: Sequence[Source], steps: Sequence[Steps]) -> None:
        self._sources, self._steps = tuple(sources), tuple(steps)
        last = self.last = sources[-1]
        self.name, self.seq_len, self.vocab_size = last.name, last.seq_len, last.vocab_size
        self.tokenizer_file, self.reading, self.answer = last.tokenizer_file, last.reading, last.answer
        self.details = {**last.details, "stages": [source.seq_len for source in sources]}
        self.fingerprint = digest([[source.fingerprint for source in sources], [stage.number for stage in steps]])

    def train(self, *, seed: int, step: int, batch_size: int) -> Batch:
        stage = next((at for at, own in enumerate(self._steps) if step < own.first + own.number), -1)
        return self._sources[stage].train(seed=seed, step=step, batch_size=batch_size)

    def validation(self, sequences: int) -> Batch:
        return self.last.validation(sequences)

    def groups(self, batch: Batch) -> Mapping[str, npt.NDArray[np.bool_]]:
        return self.last.groups(batch)

    def metrics(self, correct: npt.NDArray[np.bool_], batch: Batch) -> dict[str, float]:
        return self.last.metrics(correct, batch)
