"""Folders with a modeling file that are made of stock models: weights, spans, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, LayersearchError
from layersearch.export.files import write_files
from layersearch.export.hf import remote_files, save_remote, stock_config
from layersearch.export.remote import modeling_layersearch
from layersearch.schedule import Schedule, Span
from tests.helpers import hf_models
from tests.helpers.remote_models import VOCAB, strong, text

torch.set_num_threads(1)
SIZE: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "rope_theta": 500.0}
MORE: dict[str, tuple[str, dict[str, Any]]] = {"olmo2": ("Olmo2Config", hf_models.FAMILIES["llama"][1])}


@pytest.mark.slow
@pytest.mark.parametrize("base", modeling_layersearch.BASES)
def test_save_remote_stock_weights_load_and_every_layer_sees_its_span(base: str, tmp_path: Path) -> None:
    """The reference is the stock model with an explicit mask of the span."""
    known = hf_models.FAMILIES | MORE
    config_name, values = known[base]
    torch.manual_seed(0)
    stock = strong(AutoModelForCausalLM.from_config(getattr(transformers, config_name)(**values), dtype=torch.float64))
    stock.set_attn_implementation("eager")
    tokens, layers = text(2, 29), stock.config.num_hidden_layers
    for number, one in enumerate(["full", "window:4/3+sink:2", "block:6"]):
        schedule = Schedule((Span.parse(one),) * layers)
        out = tmp_path / str(number)
        save_remote(stock, schedule, out=out)
        model, report = AutoModelForCausalLM.from_pretrained(
            out, trust_remote_code=True, dtype=torch.float64, output_loading_info=True
        )
        assert not any(report.values()), report
        at = torch.arange(29)
        seen = schedule[0].visible(at[:, None], at[None, :])[None, None]
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)
        given: Any = {"full_attention": mask, "sliding_attention": mask} if "layer_types" in stock.config else mask
        with torch.no_grad():
            wanted, found = stock(tokens, attention_mask=given, use_cache=False).logits, model(tokens).logits
        assert (wanted - found).norm() / wanted.norm() < 1e-6, one
        grown = model.generate(tokens[:1, :9], max_new_tokens=12, do_sample=False, pad_token_id=VOCAB)
        again = model.generate(tokens[:1, :9], max_new_tokens=12, do_sample=False, pad_token_id=VOCAB, use_cache=False)
        assert torch.equal(grown, again)


def test_save_remote_windows_of_the_stock_model_are_switched_off(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2, max_position_embeddings=64
    )
    assert "sliding_attention" in config.layer_types
    schedule = Schedule.parse("full window:5*3")
    write_files(tmp_path / "new", remote_files(schedule, config), schedule)
    read = AutoConfig.from_pretrained(tmp_path / "new", trust_remote_code=True)
    assert read.layer_types == ["full_attention"] * 4
    assert (read.sliding_window, read.use_sliding_window) == (None, False)
    assert config.layer_types != read.layer_types  # the caller's own object is left alone


def test_remote_files_unsupported_model_is_refused() -> None:
    llama = stock_config(ModelConfig(n_layers=2, **SIZE), VOCAB, 16)
    for config, schedule, words in [
        (transformers.Gemma2Config(num_hidden_layers=2), "full*2", "does not support 'gemma2'"),
        (llama, "full*3", "3 layers, the model 2"),
        (llama, "full window:17", "longer than the text of 16"),
        (llama, "full window:2/2@5", "more heads than the model's 4"),
    ]:
        with pytest.raises(LayersearchError) as error:
            remote_files(Schedule.parse(schedule), config)
        assert words in str(error.value)


@pytest.mark.slow
def test_save_remote_existing_weights_are_never_overwritten(tmp_path: Path) -> None:
    stock = hf_models.make("llama")
    save_remote(stock, Schedule.parse("full*3"), out=tmp_path)
    with pytest.raises(ExportError, match="holds weights already"):
        save_remote(stock, Schedule.parse("full*3"), out=tmp_path)
