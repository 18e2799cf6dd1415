"""Export to stock families: files and refusals; `tests/export/verify` proves the masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, LayersearchError
from layersearch.export import export
from layersearch.export.families import FAMILIES
from layersearch.export.hf import save_weights
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

torch.set_num_threads(1)
VOCAB, TOKENS = 61, 24
MIXED = Schedule.parse("window:5 full window:5*2 full")
WEIGHTS = [name for name, held in FAMILIES.items() if held.decoder_weights]


def size(schedule: Schedule, family: str = "ministral", **given: Any) -> ModelConfig:
    sizes = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "qk_norm": FAMILIES[family].qk_norm} | given
    return ModelConfig(n_layers=len(schedule), **sizes)


def written(schedule: Schedule, family: str, out: Path, **given: Any) -> list[Path]:
    config = size(schedule, family, **given)
    return export(schedule, "hf", model=config, vocab_size=VOCAB, seq_len=TOKENS, out=out, family=family)


def strong_decoder(config: ModelConfig, schedule: Schedule) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(config, VOCAB, schedule).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return decoder


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", WEIGHTS)
def test_save_weights_exported_give_the_trained_logits_and_texts(family: str, tied: bool, tmp_path: Path) -> None:
    config = size(MIXED, family, tie_embeddings=tied, rope_theta=500.0)
    decoder = strong_decoder(config, MIXED)
    export(MIXED, "hf", model=config, vocab_size=VOCAB, seq_len=TOKENS, out=tmp_path, family=family)
    save_weights(decoder.state_dict(), family, model=config, out=tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        ours, theirs = decoder.logits(tokens), model(tokens).logits
        other = strong_decoder(config, Schedule.parse("window:6 full window:6*2 full")).logits(tokens)
    assert (ours - theirs).norm() / ours.norm() < 1e-5
    assert (ours - other).norm() / ours.norm() > 1e-2

    grown = tokens[:1, :3]
    with torch.no_grad():
        for _ in range(TOKENS - 3):
            grown = torch.cat((grown, decoder.logits(grown)[:, -1:].argmax(-1)), dim=1)
    for cached in (True, False):
        text = model.generate(tokens[:1, :3], max_new_tokens=TOKENS - 3, do_sample=False, use_cache=cached)
        assert torch.equal(text, grown), f"use_cache={cached}"


def test_write_config_holds_the_model_size_and_no_foreign_special_tokens(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(written(MIXED, "ministral", tmp_path, rope_theta=500.0)[0].parent)
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
                                  "full_attention"]  # fmt: skip
    assert (config.sliding_window, config.max_position_embeddings, config.vocab_size) == (5, TOKENS, VOCAB)
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (32, 48, 8)
    assert config.rope_parameters["rope_theta"] == 500.0
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert config.architectures == ["MinistralForCausalLM"]


@pytest.mark.parametrize("family", ["qwen3", "gpt_neo"])
@pytest.mark.parametrize(
    ("text", "words", "nearest"),
    [
        ("full block:8", "layer 1: block:8: family {} supports no blocks", "full window:5"),
        ("full window:4/2", "layer 1: window:4/2: family {} supports no dilation", "full window:4"),
        ("window:4/2@2 full", "layer 0: window:4/2@2: family {} supports no dilation", "window:4 full"),
        ("full window:4+sink:2", "layer 1: window:4+sink:2: family {} supports no sinks", "full window:6"),
        ("full+las:0.1 full", "layer 0: full+las:0.1: family {} supports no LaS decay or pooling", "full*2"),
        ("full window:4+las:0.0/3", "family {} supports no LaS decay or pooling", "full window:4"),
        ("window:8 full window:4", "layer 2: window:4, but layer 0 has window:8: family {} supports one window size",
         "window:6 full window:6"),
    ],
)  # fmt: skip
def test_export_unsupported_schedule_is_refused_with_the_nearest_and_nothing_is_written(
    family: str, text: str, words: str, nearest: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as error:
        written(Schedule.parse(text), family, tmp_path / "out", n_kv_heads=4)
    assert words.format(family) in str(error.value)
    assert f"the nearest supported schedule is '{nearest}'" in str(error.value)
    assert "times the attention FLOPs" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert written(Schedule.parse(nearest), family, tmp_path / "out", n_kv_heads=4)


def test_export_llama4_supports_blocks_and_no_windows(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"family llama4 supports no windows; the nearest .* is 'block:9 full'"):
        written(Schedule.parse("window:5 full"), "llama4", tmp_path)
    assert written(Schedule.parse("block:9 full"), "llama4", tmp_path)


@pytest.mark.parametrize("family", [name for name, held in FAMILIES.items() if not held.gqa])
def test_export_family_without_grouped_queries_refuses_them(family: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"n_kv_heads: family .* the model 2 for 4; give --family ministral"):
        written(MIXED, family, tmp_path)


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("hg", {"family": "qwen3"}, "did you mean 'hf'"),
        ("hf", {"family": "gwen3"}, "did you mean 'qwen3'"),
        ("yaml", {"family": "qwen3"}, "--family 'qwen3' has no meaning"),
        ("yaml", {"model": size(Schedule.parse("full*2"))}, "the schedule has 5 layers, the model 2"),
        ("json", {"seq_len": 4}, "layer 0: window:5 is longer than the text of 4 tokens"),
    ],
)
def test_export_wrong_request_is_refused(target: str, given: dict[str, Any], words: str, tmp_path: Path) -> None:
    request = {"model": size(MIXED), "vocab_size": VOCAB, "seq_len": TOKENS, "out": tmp_path} | given
    with pytest.raises(LayersearchError) as error:
        export(MIXED, target, **request)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("qk_norm", "family"), [(False, "granite_swa"), (True, "qwen3")])
def test_export_to_hf_without_a_family_takes_the_one_of_the_decoder(qk_norm: bool, family: str, tmp_path: Path) -> None:
    config = size(MIXED, qk_norm=qk_norm)
    export(MIXED, "hf", model=config, vocab_size=VOCAB, seq_len=TOKENS, out=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    save_weights(Decoder(config, VOCAB, MIXED).state_dict(), family, model=config, out=tmp_path)


def test_save_weights_granite_swa_with_wide_heads_gives_the_decoders_logits(tmp_path: Path) -> None:
    config = size(MIXED, "granite_swa", head_width=16)
    decoder = strong_decoder(config, MIXED)
    written(MIXED, "granite_swa", tmp_path, head_width=16)
    save_weights(decoder.state_dict(), "granite_swa", model=config, out=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(VOCAB, (1, TOKENS))
    with torch.no_grad():
        assert torch.allclose(decoder.logits(tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_write_config_of_gpt_oss_names_a_factor_that_scales_nothing(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(written(MIXED, "gpt_oss", tmp_path, rope_theta=500.0)[0].parent)
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("yarn", 1.0)
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    plain = 500.0 ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    assert torch.allclose(rotary.inv_freq, plain)
    assert rotary.attention_scaling == 1.0


@pytest.mark.parametrize("target", ["yaml", "json", "hf"])
def test_export_schedule_is_written_with_its_evidence(target: str, tmp_path: Path) -> None:
    evidence = {"loss": 2.5, "interval": (2.4, 2.6), "budget": 0.27}
    request: dict[str, Any] = {"model": size(MIXED), "vocab_size": VOCAB, "seq_len": TOKENS, "out": tmp_path / "new"}
    request |= {"family": "ministral"} if target == "hf" else {}
    paths = export(MIXED, target, evidence=evidence, **request)
    assert export(MIXED, target, evidence=evidence, **request) == paths  # the same again is no conflict
    text = paths[-1].read_text(encoding="utf-8")
    content = json.loads(text) if target == "json" else yaml.safe_load(text)
    assert Schedule.parse(content["schedule"]) == Schedule.from_dicts(content["layers"]) == MIXED
    assert content["evidence"] == {"loss": 2.5, "interval": [2.4, 2.6], "budget": 0.27}
    with pytest.raises(ExportError, match="exists and differs"):
        export(MIXED, target, evidence={}, **request)


def test_export_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        written(MIXED, "qwen3", tmp_path / "file" / "out")


@pytest.mark.parametrize(("family", "other"), [("qwen3", "ministral"), ("ministral", "qwen3"), ("gemma2", "ministral")])
def test_save_weights_the_family_would_not_load_are_refused(family: str, other: str, tmp_path: Path) -> None:
    config = size(MIXED, other)
    with pytest.raises(ExportError, match=f"give --family {other}"):
        save_weights(Decoder(config, VOCAB, MIXED).state_dict(), family, model=config, out=tmp_path)


def test_save_weights_existing_ones_are_never_overwritten(tmp_path: Path) -> None:
    config = size(MIXED)
    state = Decoder(config, VOCAB, MIXED).state_dict()
    save_weights(state, "ministral", model=config, out=tmp_path)
    with pytest.raises(ExportError, match="exists; give --out another folder"):
        save_weights(state, "ministral", model=config, out=tmp_path)


@pytest.mark.parametrize("folder", ["file/out", "/proc/self"])
def test_save_weights_unwritable_folder_is_refused_in_one_line(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = size(MIXED)
    with pytest.raises(ExportError, match="cannot be written"):
        save_weights(Decoder(config, VOCAB, MIXED).state_dict(), "ministral", model=config, out=tmp_path / folder)
