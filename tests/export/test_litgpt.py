"""Checkpoints of LitGPT, read back by code that knows LitGPT's names by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from layersearch.errors import ExportError
from layersearch.export import export_model, read_source
from layersearch.export.litgpt import litgpt_config, litgpt_tensors
from layersearch.export.verify.engines.litgpt_files import Checkpoint
from layersearch.schedule import Schedule
from tests.helpers import hf_models

MIXED = Schedule.parse("full window:5 window:5")
SIZES: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_export_model_litgpt_checkpoint_holds_the_models_weights_and_sizes(family: str, tmp_path: Path) -> None:
    source = read_source(str(hf_models.save(family, tmp_path / "source")))
    export_model(MIXED, "litgpt", source, out=tmp_path / "out")
    given = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text())
    assert (given["sliding_window_size"], given["sliding_window_indices"]) == (5, [0, 1, 1])
    assert source.tensors is not None
    tensors = source.tensors()
    made = Checkpoint(tmp_path / "out").make(tmp_path / "random", 24, True)
    assert made.weights == "the folder's own"
    assert set(made.state) == {*tensors, "lm_head.weight"}
    for name, tensor in tensors.items():
        assert torch.equal(made.state[name], tensor.float()), name
    same = ("model_type", "hidden_size", "intermediate_size", "num_key_value_heads", "rms_norm_eps", "vocab_size")
    assert {key: made.values[key] for key in same} == {key: source.values[key] for key in same}
    assert made.values["rope_parameters"]["rope_theta"] == source.values["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, ("type llama, mistral", "'gemma2'", "--to hf")),
        ({"attention_bias": True}, ("attention_bias is True",)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, ("rope_type 'yarn'",)),
        ({"rope_parameters": {"rope_theta": 500.5}}, ("not 500.5", "rope_theta")),
    ],
)
def test_litgpt_config_of_another_model_is_refused(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ExportError) as error:
        litgpt_config(MIXED, SIZES | changes)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_litgpt_config_llama3_rope_is_adjusted() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = litgpt_config(MIXED, SIZES | {"rope_parameters": rope | {"original_max_position_embeddings": 16}})
    assert config["rope_adjustments"] == {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 16,
    }


def test_litgpt_tensors_without_a_place_are_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ExportError, match=r"no place for model\.layers\.0\.extra"):
        litgpt_tensors(
            dict.fromkeys(("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.extra"), one), 1
        )
