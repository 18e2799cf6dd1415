"""A recipe for a pre-trained model: its size, its tokenizer and its vocabulary in place of the recipe's own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from layersearch.config.data import DataConfig
from layersearch.config.model import ModelConfig
from layersearch.config.recipe import Recipe
from layersearch.data.gguf_file import is_gguf
from layersearch.data.tokenizer import load_tokenizer, tokenizer_path, vocab_size
from layersearch.errors import ConfigError, DataError, LayersearchError
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import FLAG, load_skeleton

_TEXT_SOURCES = ("stdlib", "files", "text", "json", "parquet", "hub", "mix")


def model_config(name: str, decoder: HFDecoder) -> ModelConfig:
    """Return a model's size: layers, heads, widths."""
    config = decoder.model.config
    width = config.hidden_size
    try:
        return ModelConfig(
            n_layers=len(decoder.attention),
            d_model=width,
            n_heads=decoder.n_heads,
            n_kv_heads=decoder.n_kv_heads,
            d_ff=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width,
            head_width=decoder.head_dim,
            tie_embeddings=bool(config.tie_word_embeddings),
        )
    except LayersearchError as error:
        raise LayersearchError(f"{FLAG} {name}: {error}") from None


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with a pre-trained model's size and tokenizer in place of its own.

    Raises:
        LayersearchError: the model cannot be loaded, or its tokenizer is missing or another model's.
    """
    if recipe.training.optimizer != "adamw":
        raise ConfigError(
            f"training.optimizer {recipe.training.optimizer} trains from scratch; with {FLAG} give --recipe "
            "pretrained, or set training.optimizer=adamw"
        )
    data = with_tokenizer(recipe.data, name)
    decoder = load_skeleton(name, tokens=recipe.training.seq_len)
    own = None if data.tokenizer in (None, name) and is_gguf(name) else data.tokenizer
    if data.source in _TEXT_SOURCES and own is not None and (file := tokenizer_path(own)) is not None:
        # Now, not after the text was prepared with it.
        check_vocabulary(decoder.num_embeddings, vocab_size(load_tokenizer(file)), own)
    return replace(recipe, model=model_config(name, decoder), data=data, pretrained=name)


def with_tokenizer(data: DataConfig, name: str) -> DataConfig:
    """Return the data section with the model's own tokenizer, unless it names one or reads no text."""
    if data.source not in _TEXT_SOURCES or data.tokenizer is not None:
        return data
    if os.path.isdir(name) and not (Path(name) / "tokenizer.json").is_file():
        raise DataError(
            f"{FLAG} {name} holds no tokenizer.json, and another model's token ids do not fit it: save its own there, "
            "or name it with --set data.tokenizer=FILE"
        )
    return replace(data, tokenizer=name)


def check_vocabulary(rows: int, vocab_size: int, tokenizer: str | None) -> None:
    """Raise DataError if the data has more tokens than the model has embeddings (``rows``)."""
    if vocab_size > rows:
        which = f"data.tokenizer {tokenizer}" if tokenizer else "the data"
        raise DataError(
            f"{which} has {vocab_size} tokens and the model embeddings for {rows}: it is not this model's; give its own"
        )
