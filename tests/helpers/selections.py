"""Small models that can be run from any layer on, with units to measure them, and a tokenizer of their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from layersearch.data.tokenizer import EOS, train_bpe
from layersearch.model.hf_decoder import HFDecoder
from layersearch.schedule import Schedule
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Unit
from layersearch.selection.retrieval import FILLER, Answer, Example
from tests.helpers.hf_models import VOCAB, make

LAYERS, TOKENS = 4, 40
SCHEDULES = tuple(
    map(
        Schedule.parse,
        (
            "full*4",
            "full window:4 window:9+sink:2 block:8",
            "full window:4 window:9+sink:2 full",
            "full window:4 full block:8",
            "full full window:9+sink:2 block:8",
            "window:4*4",
        ),
    )
)
"""The second differs in each layer; each of the next three from it in another layer."""
TASKS = ("first", "second")


def layerwise(family: str = "llama", *, stride: int = 1, double: bool = False, **changes: Any) -> Layerwise:
    """Return a random model of four layers."""
    model = make(family, **{"num_hidden_layers": LAYERS, **changes})
    return Layerwise(HFDecoder(model.double() if double else model), stride)


def token_ids(seed: int, count: int = TOKENS) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def units(count: int) -> list[Unit]:
    """Return units of random ids; each example asks twice, for three and for two tokens."""
    answers = (
        Answer(task="first", depth=0.1, start=TOKENS - 9, stop=TOKENS - 6),
        Answer(task="second", depth=0.3, start=TOKENS - 2, stop=TOKENS),
    )
    return [Unit(token_ids(n, TOKENS + 1), Example(tokens=token_ids(100 + n), answers=answers)) for n in range(count)]


def small_tokenizer() -> Tokenizer:
    """Return a byte-level BPE of the retrieval tasks' own words."""
    return train_bpe([*FILLER * 3, "The special magic number for river is 4 0 1 2 3 5 6 7 8 9." * 3], 400)


def save_model(folder: Path, texts: list[str], layers: int = 5, **changes: Any) -> Path:
    """Save a random Llama of 512 tokens with a tokenizer of its own, as a user has it."""
    import transformers

    tokenizer = train_bpe(texts, 512)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.token_to_id(EOS),
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)  # strong enough for the spans to show in the loss
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
