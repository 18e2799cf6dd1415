"""A model of another kind is refused by name before its weights are read; a decoder is known without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from layersearch.config.recipe import load_recipe
from layersearch.data.tokenizer import train_bpe
from layersearch.errors import DataError, LayersearchError
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.kinds import skeleton
from layersearch.model.pretrained import load_pretrained, load_skeleton
from layersearch.model.pretrained_recipe import model_config, recipe_for
from layersearch.schedule import Schedule
from tests.helpers import hf_models
from tests.helpers.hf_models import FAMILIES, FURTHER, VOCAB

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "BertConfig": ({}, "bert is an encoder"),
    "RobertaConfig": ({}, "roberta is an encoder"),
    "T5Config": ({}, "t5 is an encoder-decoder"),
    "BartConfig": ({}, "bart is an encoder-decoder"),
    "WhisperConfig": ({}, "whisper is an encoder-decoder"),
    "ViTConfig": ({}, "vit is no causal language model"),
    "Gemma3Config": ({}, r"gemma3 is a model of several parts \(.*vision_config"),
    "Qwen3NextConfig": (SMALL, "layer 0 is linear_attention"),
    "JambaConfig": (SMALL, "is linear_attention|layers use transformers' attention interface"),
    "MambaConfig": (SMALL, "is linear_attention|layers use transformers' attention interface"),
    "Llama4TextConfig": (SMALL, "layer 0 is chunked_attention"),
    "FalconConfig": (SMALL, "FalconForCausalLM does not use transformers' attention interface"),
    "BloomConfig": (SMALL, "BloomForCausalLM does not use transformers' attention interface"),
    "DeepseekV3Config": ({}, "DeepseekV3Attention has values of another width than its keys"),
}


@pytest.mark.parametrize("name", KINDS)
def test_load_pretrained_other_kind_is_refused_by_name_before_its_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, said = KINDS[name]
    getattr(transformers, name)(**values).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("were read"))
    with pytest.raises(LayersearchError, match=said) as caught:
        load_pretrained(str(tmp_path))
    assert str(caught.value).startswith(f"--model {tmp_path}: ")


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_skeleton_knows_what_the_loaded_model_knows(family: str) -> None:
    model = hf_models.make(family)
    found, loaded = skeleton("--model it", model.config), HFDecoder(model, check=False)
    assert found is not None
    assert next(found.parameters()).is_meta
    assert model_config("it", found) == model_config("it", loaded)
    for attribute in ("original", "softcap", "num_embeddings", "n_heads", "n_kv_heads", "head_dim"):
        assert getattr(found, attribute) == getattr(loaded, attribute)


def test_load_skeleton_folder_with_a_shard_cut_off_is_refused_in_one_line(tmp_path: Path) -> None:
    hf_models.make("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    for load in (load_skeleton, load_pretrained):
        with pytest.raises(LayersearchError, match=rf"{shard.name} is cut off or damaged \(.*\); copy it there again"):
            load(str(tmp_path))


def test_load_pretrained_mixture_of_experts_agrees_in_its_default_kernels(tmp_path: Path) -> None:
    decoder = load_pretrained(str(hf_models.save("mixtral", tmp_path)))
    decoder.set_schedule(Schedule.parse("window:4 full window:4"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.isfinite(decoder.logits(tokens)).all()


@pytest.mark.parametrize(("rows", "fits"), [(257, False), (258, True), (320, True)])
def test_recipe_for_tokenizer_of_another_model_is_refused_before_the_text_is_read(
    tmp_path: Path, rows: int, fits: bool
) -> None:
    hf_models.save("llama", tmp_path, vocab_size=rows)
    train_bpe(["abc def " * 50], 258).save(str(tmp_path / "tokenizer.json"))
    recipe = load_recipe("pretrained", ["training.seq_len=32", "data.source=text", "data.files=[missing.txt]"])
    if fits:  # embeddings are often padded
        assert recipe_for(recipe, str(tmp_path)).data.tokenizer == str(tmp_path)
        return
    with pytest.raises(DataError, match="has 258 tokens and the model embeddings for 257: it is not this model's"):
        recipe_for(recipe, str(tmp_path))
