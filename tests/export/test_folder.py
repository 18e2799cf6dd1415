"""Export of whole models: configuration, weights and tokenizer, read back by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export import SourceModel, decoder_source, export_model, read_source
from layersearch.export.capabilities import UnsupportedSchedule
from layersearch.export.mlx import check_mlx, mlx_config
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from tests.helpers import hf_models

torch.set_num_threads(1)
MIXED = Schedule.parse("full window:5 window:5")
IDS = torch.arange(24)[None] % hf_models.VOCAB
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def source(folder: Path, family: str = "llama", **changes: Any) -> SourceModel:
    return read_source(str(hf_models.save(family, folder / "source", **changes)))


def logits(folder: Path, **options: Any) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def windowed(held: SourceModel, schedule: Schedule) -> torch.Tensor:
    """Return the logits of a Llama's weights under a schedule: as transformers' Ministral, which has no sinks."""
    types = ["full_attention" if span.is_full else "sliding_attention" for span in schedule]
    size = next((span.size for span in schedule if span.size), 9)
    values = {**held.values, "layer_types": types, "sliding_window": size}
    values.pop("model_type")
    model: Any = transformers.MinistralForCausalLM(transformers.MinistralConfig(**values))
    assert held.tensors is not None
    model.load_state_dict(held.tensors(), strict=False)
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"head_dim": 16}, {"rope_parameters": LLAMA3}],
    ids=["plain", "tied", "wide heads", "llama3"],
)
def test_export_model_llama_as_granite_swa_gives_the_logits_of_its_weights_under_the_schedule(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    held = source(tmp_path, **changes)
    paths, note = export_model(MIXED, "hf", held, out=tmp_path / "out")
    assert [path.name for path in paths] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "schedule.yaml",
    ]
    assert note is not None
    assert "granite_swa" in note
    assert "no tokenizer" in note
    wanted, found = windowed(held, MIXED), logits(tmp_path / "out")
    other = windowed(held, Schedule.parse("full window:6 window:6"))
    assert (wanted - found).abs().max() / wanted.abs().max() < 1e-5
    assert (wanted - other).abs().max() / wanted.abs().max() > 1e-3


def test_export_model_keeps_what_is_the_models_own(tmp_path: Path) -> None:
    held = source(tmp_path, rms_norm_eps=1e-5, rope_parameters=LLAMA3, eos_token_id=7, dtype="bfloat16")
    (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    for target in ("hf", "mlx"):
        export_model(MIXED, target, held, out=tmp_path / target)
        config = json.loads((tmp_path / target / "config.json").read_text())
        assert config["rope_parameters"] == LLAMA3
        assert (config["rms_norm_eps"], config["eos_token_id"], config["vocab_size"]) == (1e-5, 7, hf_models.VOCAB)
        assert config["max_position_embeddings"] == 64
        assert json.loads((tmp_path / target / "generation_config.json").read_text())["eos_token_id"] == [7, 9]
        assert (tmp_path / target / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_export_model_weights_keep_their_type(dtype: str, tmp_path: Path) -> None:
    hf_models.make("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path / "source")
    for target in ("hf", "mlx", "hf-remote"):
        export_model(MIXED, target, read_source(str(tmp_path / "source")), out=tmp_path / target)
        kinds = {tensor.dtype for tensor in load_file(tmp_path / target / "model.safetensors").values()}
        assert kinds == {getattr(torch, dtype)}
    export_model(MIXED, "litgpt", read_source(str(tmp_path / "source")), out=tmp_path / "litgpt")
    held = torch.load(tmp_path / "litgpt" / "lit_model.pth", weights_only=True)
    assert {tensor.dtype for tensor in held.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "ministral"])
def test_export_model_other_families_keep_their_type_and_weights(family: str, tmp_path: Path) -> None:
    held = source(tmp_path, family)
    export_model(MIXED, "hf", held, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == family
    assert held.tensors is not None
    wanted, found = held.tensors(), load_file(tmp_path / "out" / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_export_model_biases_fit_granite_swa_and_not_ministral(tmp_path: Path) -> None:
    held = source(tmp_path, attention_bias=True, mlp_bias=True)
    export_model(MIXED, "hf", held, out=tmp_path / "out")
    with pytest.raises(ExportError, match=r"attention_bias is True, and ministral has no attention_bias"):
        export_model(MIXED, "hf", held, out=tmp_path / "other", family="ministral")
    assert not (tmp_path / "other").exists()


def test_export_model_to_hf_remote_brings_the_weights(tmp_path: Path) -> None:
    held = source(tmp_path)
    schedule = Schedule.parse("full window:4+sink:1 window:7")  # no stock family holds it
    paths, _ = export_model(schedule, "hf-remote", held, out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors") in paths
    size = ModelConfig(n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, tie_embeddings=False)
    decoder = Decoder(size, hf_models.VOCAB, schedule)
    assert held.tensors is not None
    decoder.load_state_dict({name.removeprefix("model."): value for name, value in held.tensors().items()})
    with torch.no_grad():
        wanted = decoder.eval().logits(IDS)
    assert torch.allclose(logits(tmp_path / "out", trust_remote_code=True), wanted, rtol=1e-4, atol=1e-4)


def test_export_model_of_a_decoder_gives_its_logits(tmp_path: Path) -> None:
    size = ModelConfig(n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, rope_theta=700.0)
    torch.manual_seed(0)
    decoder = Decoder(size, hf_models.VOCAB, MIXED).eval()
    held = decoder_source(decoder.state_dict(), size, vocab_size=hf_models.VOCAB, seq_len=64)
    export_model(MIXED, "hf", held, out=tmp_path)
    with torch.no_grad():
        assert torch.allclose(logits(tmp_path), decoder.logits(IDS), atol=1e-5)


@pytest.mark.parametrize("target", ["hf", "hf-remote", "mlx"])
def test_export_model_without_weights_writes_the_rest_and_says_so(target: str, tmp_path: Path) -> None:
    hf_models.make("llama").config.save_pretrained(tmp_path / "source")
    paths, note = export_model(MIXED, target, read_source(str(tmp_path / "source")), out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert (tmp_path / "out" / "config.json") in paths
    assert note is not None
    assert "has no weights" in note


@pytest.mark.parametrize("target", ["hf", "mlx", "gguf"])
def test_export_model_unsupported_schedule_names_the_nearest_and_leaves_nothing(target: str, tmp_path: Path) -> None:
    held = source(tmp_path)
    with pytest.raises(UnsupportedSchedule) as error:
        export_model(Schedule.parse("full window:4+sink:1 window:7"), target, held, out=tmp_path / "a" / "out")
    assert str(error.value.nearest) == "full window:6*2"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("target", ["hf", "hf-remote", "mlx", "gguf"])
def test_export_model_other_files_are_kept_and_equal_ones_allowed(target: str, tmp_path: Path) -> None:
    held = source(tmp_path)
    paths, _ = export_model(MIXED, target, held, out=tmp_path / "out")
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert export_model(MIXED, target, held, out=tmp_path / "out")[0] == paths
    for path in paths:
        kept = tmp_path / f"kept-{path.name}"
        kept.mkdir()
        (kept / path.name).write_text("mine")
        with pytest.raises(ExportError, match=f"{path.name} exists and differs"):
            export_model(MIXED, target, held, out=kept)
        assert [file.read_text() for file in kept.iterdir()] == ["mine"]


def test_mlx_config_of_a_llama_has_the_keys_that_mlx_reads(tmp_path: Path) -> None:
    for family in ("llama", "mistral", "ministral"):
        config = mlx_config(MIXED, source(tmp_path / family, family, rope_parameters=LLAMA3).values)
        assert config["model_type"] == "llama"
        assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
        assert (config["sliding_window"], config["rope_theta"]) == (5, 5000.0)
        assert config["rope_scaling"] == {key: value for key, value in LLAMA3.items() if key != "rope_theta"}


def test_mlx_config_without_scaling_has_none(tmp_path: Path) -> None:
    config = mlx_config(MIXED, source(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 900.0}).values)
    assert (config["rope_theta"], config["rope_scaling"]) == (900.0, None)


def test_mlx_config_of_exaone4_has_a_letter_per_layer() -> None:
    values = {
        "model_type": "exaone4",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "rope_parameters": {"rope_theta": 1e4},
    }
    config = mlx_config(Schedule.parse("full window:3 full"), values)
    assert (config["sliding_window_pattern"], config["head_dim"]) == ("GLG", 8)


@pytest.mark.parametrize(
    ("text", "period"), [("window:4 window:4 full window:4", 3), ("window:4*2 full", 3), ("full*3", 1)]
)
def test_mlx_config_of_gemma3_has_the_period(text: str, period: int) -> None:
    bases = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    config = mlx_config(Schedule.parse(text), {"model_type": "gemma3_text", "rope_parameters": bases})
    assert (config["sliding_window_pattern"], config["rope_theta"], config["rope_local_base_freq"]) == (
        period,
        1e6,
        1e4,
    )


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("llama", "window:4*3", "does not load a llama without a full layer"),
        ("olmo3", "full*3", "without a window"),
        ("exaone4", "full*3", "without a window"),
        ("gemma3_text", "full window:4 full", "end of every period"),
        ("qwen3", "full window:4 full", "runs a qwen3 with layers of its own"),
        ("cohere2", "full window:4 full", "runs a cohere2 with layers of its own"),
        ("gpt_oss", "full window:4 full", "does not run a schedule in a model of type 'gpt_oss'"),
    ],
)
def test_check_mlx_schedule_that_does_not_run_is_refused(kind: str, text: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        check_mlx(Schedule.parse(text), kind, seq_len=64, n_heads=4)


@pytest.mark.parametrize("target", ["mlx", "gguf"])
def test_export_model_yarn_that_engines_compute_otherwise_is_refused(target: str, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    export_model(MIXED, target, source(tmp_path / "a", rope_parameters=yarn), out=tmp_path / "out")
    held = source(tmp_path / "b", rope_parameters=yarn | {"attention_factor": 1.5})
    with pytest.raises(ExportError, match=r"attention_factor is 1\.5"):
        export_model(MIXED, target, held, out=tmp_path / "other")
