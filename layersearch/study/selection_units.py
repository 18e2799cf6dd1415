"""The units of a selection: texts that share no document, each with a retrieval example."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layersearch.config.recipe import Recipe
from layersearch.data.sequences import document_sequences
from layersearch.data.tokenizer import open_tokenizer, vocab_size
from layersearch.model.pretrained_recipe import check_vocabulary
from layersearch.selection.measure import Unit
from layersearch.selection.retrieval import make_example

PARTS = ("calibration", "selection", "confirmation")
_LOG = logging.getLogger(__name__)


def make_units(
    recipe: Recipe, rows: int, seed: int, cache: Path | None
) -> tuple[dict[str, list[Unit]], dict[str, Any]]:
    """Return the units of each of `PARTS`, which share no document, and the facts that a run folder records.

    ``rows`` are the model's embeddings, which the tokens must fit. See `layersearch.search` for errors.
    """
    config, data, seq_len = recipe.selection, recipe.data, recipe.training.seq_len
    assert config is not None
    assert data.tokenizer is not None
    tokenizer, _ = open_tokenizer(data.tokenizer)
    check_vocabulary(rows, vocab_size(tokenizer), data.tokenizer)
    counts = dict(zip(PARTS, (config.calibration_units, config.selection_units, config.confirm_units), strict=True))
    texts = document_sequences(data, data.tokenizer, seq_len, counts, seed=seed, cache=cache)
    _LOG.info("data: %s", texts.reading)
    number, units = 0, dict[str, list[Unit]]()
    for part in PARTS:
        units[part] = []
        for text in texts[part]:
            example = make_example(tokenizer, config.used_tasks, seq_len=seq_len + 1, number=number, seed=seed)
            units[part].append(Unit(torch.from_numpy(text), example))
            number += 1
    content = hashlib.sha256()
    for unit in itertools.chain.from_iterable(units.values()):
        for tokens in (unit.text, unit.example.tokens):
            content.update(tokens.numpy().tobytes())
    facts = {"source": data.source, "tokenizer": data.tokenizer, "vocab_size": rows, "seq_len": seq_len}
    return units, facts | {"fingerprint": content.hexdigest()[:20], "read": dataclasses.asdict(texts.reading)}


def units_without_facts(recipe: Recipe, tasks: Sequence[str], count: int, seed: int) -> list[Unit]:
    """Return retrieval examples that ask for facts that are not in the text: what can be guessed."""
    seq_len, tokenizer = recipe.training.seq_len, open_tokenizer(str(recipe.data.tokenizer))[0]
    made = [
        make_example(tokenizer, tasks, seq_len=seq_len + 1, number=number, seed=seed, with_facts=False)
        for number in range(count)
    ]
    return [Unit(example.tokens, example) for example in made]
