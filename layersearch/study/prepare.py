"""Preparation of every run: open and check the data, then create or reopen the run folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from layersearch.config.data import DataConfig
from layersearch.config.recipe import Recipe
from layersearch.config.training import TrainingConfig
from layersearch.data import describe, open_training
from layersearch.data.source import Source, check_marks
from layersearch.files import FREE
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.run_folder import RunFolder
from layersearch.training.deepspeed_config import deepspeed_config

_LOG = logging.getLogger(__name__)


def open_data(
    data: DataConfig,
    training: TrainingConfig,
    deepspeed: Path,
    *,
    rows: int | None = None,
    cache: Path | None = None,
    kind: str = "decoder",
) -> Source:
    """Open the data source, check its validation set, its vocabulary and the DeepSpeed file, and log its reading.

    ``rows`` are the embedding rows of a pre-trained model, which the vocabulary must fit; None: a new model. ``kind``
    is the model's kind. Raises LayersearchError, which names the wrong key and the remedy.
    """
    source = open_training(data, training, cache, kind)
    if rows is not None:
        from layersearch.model.pretrained_recipe import check_vocabulary

        check_vocabulary(rows, source.vocab_size, data.tokenizer)
    source.validation(training.val_sequences)
    deepspeed_config(training, deepspeed)
    if source.reading is not None:
        _LOG.info("data: %s", source.reading)
    return source


def open_run_folder(
    out: Path,
    recipe: Recipe,
    space: BoundSpace,
    source: Source,
    *,
    budget: float,
    seed: int,
    free: Collection[str] = FREE,
) -> RunFolder:
    """Create or reopen the run folder of a request, and count its FLOPs with fvcore once.

    ``free`` are keys of the configuration that may differ from the folder's. See `RunFolder` for errors.
    """
    check_marks(list(dict.fromkeys(span for options in space.options for span in options)), source)
    request = request_of(recipe, space, budget=budget, seed=seed, data=describe(source))
    folder = RunFolder(out, request, free)
    folder.write_flops(lambda: _flops(recipe, space, source.vocab_size))
    return folder


def _flops(recipe: Recipe, space: BoundSpace, vocab_size: int) -> Mapping[str, Any]:
    from layersearch.model.fvcore_flops import check_flops  # imports torch

    return check_flops(recipe, space, vocab_size)


def request_of(recipe: Recipe, space: BoundSpace, *, budget: float, seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that defines a run, as plain data."""
    request: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "space": dataclasses.asdict(space.space),
        "budget": budget,
        "seed": seed,
        "data": data,
    }
    if recipe.pretrained is not None:
        from layersearch.model.pretrained import fingerprint

        request["model_fingerprint"] = fingerprint(recipe.pretrained)
    return request
