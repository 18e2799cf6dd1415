"""Training data: generated tasks with a known answer, and text. A wrong setting or file raises a `DataError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersearch.config.corruption import corruption
from layersearch.config.data import DataConfig
from layersearch.config.recipe import Recipe
from layersearch.config.stages import divide
from layersearch.config.training import TrainingConfig
from layersearch.data.answers import HiddenAnswers, WrittenAnswers
from layersearch.data.cache import default_cache
from layersearch.data.classes import MAKERS, open_classes
from layersearch.data.lost_spans import LostSpans
from layersearch.data.masked import Masked
from layersearch.data.mix import Mix
from layersearch.data.source import IGNORE, Batch, KnownAnswer, Source
from layersearch.data.staged import Staged
from layersearch.data.streams import Streams
from layersearch.data.tasks import TASKS
from layersearch.data.text import open_text
from layersearch.errors import located


def open_source(
    config: DataConfig,
    seq_len: int,
    cache: Path | None = None,
    training: TrainingConfig | None = None,
    kind: str = "decoder",
) -> Source:
    """Open the source that a recipe's data section names; prepare its text if the cache lacks it.

    Args:
        config: the data section.
        seq_len: tokens in a sequence.
        cache: folder of prepared text; None: `default_cache`.
        kind: the model's kind: what ``mask_share`` means, and what a task hides, depends on it.
        training: the training section, whose ``segments`` read on in a text; None: sequences are drawn anywhere.

    Raises:
        DataError: names the wrong key and the remedy.
    """
    if config.source in TASKS:
        if kind == "encoder":
            return HiddenAnswers(config, seq_len)
        if kind == "encoder_decoder":
            return WrittenAnswers(config, seq_len)
        return TASKS[config.source](config, seq_len)
    if config.source in MAKERS:
        return open_classes(config, seq_len, cache or default_cache())
    if config.source == "mix":
        return Mix(config, seq_len, cache or default_cache())
    if config.mask_share is not None and kind == "encoder_decoder":
        lengths = corruption(seq_len, config.mask_share)
        return LostSpans(open_text(config, lengths.text, cache or default_cache()), config.mask_share, lengths)
    text = open_text(config, seq_len, cache or default_cache())
    if training is not None and training.segments is not None:
        return Streams(text, training.warm_tokens or 0)
    return text if config.mask_share is None else Masked(text, config.mask_share)


def open_training(
    data: DataConfig, training: TrainingConfig, cache: Path | None = None, kind: str = "decoder"
) -> Source:
    """Open the data of a trial, of every stage of it; arguments and errors as of `open_source`."""
    if not training.stages:
        return open_source(data, training.seq_len, cache, training, kind)
    sources = []
    for number, stage in enumerate(training.stages):
        with located(f"training.stages[{number}]"):
            sources.append(open_source(data, stage.seq_len, cache, kind=kind))
    return Staged(sources, divide([stage.share for stage in training.stages], training.steps))


def describe(source: Source) -> dict[str, Any]:
    """Return the facts about a source that a run folder records, as plain data."""
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "seq_len": source.seq_len,
        "vocab_size": source.vocab_size,
        **source.details,
        "known_optimal_l": source.answer.optimal_l if source.answer else None,
        "known_stepwise_l": source.answer.stepwise_l if source.answer else None,
    }


def open_of(recipe: Recipe, cache: Path | None = None) -> Source:
    """Open the source of a recipe's trials, of every stage of them, as `open_source` does."""
    return open_training(recipe.data, recipe.training, cache, recipe.model.kind)


__all__ = [
    "IGNORE",
    "TASKS",
    "Batch",
    "KnownAnswer",
    "Source",
    "default_cache",
    "describe",
    "open_of",
    "open_source",
    "open_training",
]
