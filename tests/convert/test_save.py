"""A converted model of each family, saved and proven: what its folder does is what its schedule says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from layersearch.convert.save import REMOTE, limits, round_weights, save_model, target_family
from layersearch.errors import ConfigError, UserError
from layersearch.export.verify import verify
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import load_pretrained
from layersearch.model.stored_dtype import stored_dtype
from layersearch.schedule import Schedule
from tests.helpers.hf_models import FAMILIES, LAYERS, make

torch.set_num_threads(1)
WINDOWS = Schedule.parse("window:5 full window:5")
STOCK = {"llama": "ministral", "mistral": "ministral", "ministral": "ministral", "qwen2": "qwen2", "qwen3": "qwen3",
         "smollm3": "smollm3"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_save_model_converted_is_saved_where_its_schedule_holds(family: str, tmp_path: Path) -> None:
    decoder = HFDecoder(make(family))
    decoder.set_schedule(WINDOWS)
    target = target_family(decoder.model, WINDOWS)
    assert target == STOCK.get(family, REMOTE)
    save_model(decoder, target, tmp_path / "out", evidence={"loss": 1.0})
    remote = target == REMOTE
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=remote)
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = decoder.logits(tokens)
        assert (loaded(input_ids=tokens).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    if not remote:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == target
    assert verify(tmp_path / "out", trust_remote_code=remote).proven


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_save_model_converted_twice_is_saved_again(family: str, tmp_path: Path) -> None:
    """Its own modeling file is not run for that; what it sees is the original that losses are compared with."""
    decoder = HFDecoder(make(family))
    schedule = Schedule.parse("block:5 full window:4/2")
    decoder.set_schedule(schedule)
    save_model(decoder, REMOTE, tmp_path / "out", evidence={})
    (tmp_path / "out" / "modeling_layersearch.py").write_text("raise SystemExit('it was run')\n")
    again = load_pretrained(str(tmp_path / "out"))
    assert again.schedule == again.original == schedule
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(again.logits(tokens), decoder.logits(tokens), atol=1e-5)
    assert target_family(again.model, WINDOWS) == STOCK.get(family, REMOTE)


@pytest.mark.parametrize("text", ["block:5 full*2", "window:5 window:6 full", "window:5/2 full*2", "full*3"])
def test_save_model_schedule_without_stock_family_brings_a_modeling_file(text: str) -> None:
    schedule = Schedule.parse(text)
    assert len(schedule) == LAYERS
    held = schedule == Schedule.parse("full*3")
    assert target_family(make("llama"), schedule) == ("ministral" if held else REMOTE)
    assert target_family(make("llama"), schedule, REMOTE) == REMOTE


@pytest.mark.slow
def test_save_model_weights_the_stock_family_lacks_are_refused_by_name(tmp_path: Path) -> None:
    """A Llama with biases has weights that no Ministral loads; said before anything is trained."""
    decoder = HFDecoder(make("llama", attention_bias=True))
    decoder.set_schedule(WINDOWS)
    with pytest.raises(
        UserError, match=r"--family ministral cannot load the weights \(.*bias\); give --family hf-remote"
    ):
        target_family(decoder.model, WINDOWS, "ministral")
    assert target_family(decoder.model, WINDOWS) == REMOTE
    save_model(decoder, REMOTE, tmp_path / "remote", evidence={})
    assert verify(tmp_path / "remote", trust_remote_code=True).proven


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "schedule", "words"),
    [
        ("gemma2", "window:5 full window:5", None),
        (
            "gemma2",
            "window:5 full window:6",
            "family gemma2 alone, which holds full layers and one window, not window:5 full window:6",
        ),
        ("gpt_oss", "full window:5 full", None),
        ("mixtral", "window:5*3", None),
        ("mixtral", "full*3", None),
        ("mixtral", "window:5 full window:5", "family mixtral alone, which holds one window in all layers, or none"),
        ("qwen3_moe", "window:5*3", None),
        ("gemma3_text", "window:5*3", None),  # as it was: only the size changes
        ("gemma3_text", "window:5 full window:5", "changes the positions of layer 1 with"),
        ("olmoe", "window:5*3", "cannot save another schedule for a model of type olmoe"),
        ("qwen2_moe", "full*3", "cannot save another schedule for a model of type qwen2_moe"),
    ],
)
def test_target_family_without_a_modeling_file_saves_what_its_own_class_holds(
    family: str, schedule: str, words: str | None, tmp_path: Path
) -> None:
    decoder = HFDecoder(make(family))
    decoder.set_schedule(Schedule.parse(schedule))
    if words is not None:
        with pytest.raises(UserError, match=words):
            target_family(decoder.model, decoder.schedule)
        assert limits(family) is not None
        return
    target = target_family(decoder.model, decoder.schedule)
    save_model(decoder, target, tmp_path / "out", evidence={})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == family
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem


@pytest.mark.parametrize("family", FAMILIES)
def test_limits_are_none_where_a_modeling_file_holds_every_schedule(family: str) -> None:
    assert limits(family) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("schedule", ["window:5 full window:5", "block:5 full window:4/2"])
def test_save_model_keeps_the_type_of_the_weights(dtype: torch.dtype, schedule: str, tmp_path: Path) -> None:
    model = make("llama").to(dtype)
    model.save_pretrained(tmp_path / "given")
    decoder = load_pretrained(str(tmp_path / "given"))
    assert stored_dtype(str(tmp_path / "given"), decoder.model.config) == dtype
    with torch.no_grad():
        for parameter in decoder.model.parameters():  # as training does
            parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    round_weights(decoder.model, dtype)
    decoder.set_schedule(Schedule.parse(schedule))
    save_model(decoder, target_family(decoder.model, decoder.schedule), tmp_path / "out", evidence={}, dtype=dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", trust_remote_code=True)
    assert again.dtype == dtype
    saved = again.state_dict()
    for name, tensor in decoder.model.state_dict().items():
        assert torch.equal(saved[name].float(), tensor.float()), name


def test_stored_dtype_is_that_of_most_weights_and_of_the_configuration_without_files(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(2), "c": torch.zeros(99, dtype=torch.int64)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = transformers.LlamaConfig(dtype="float16")
    assert stored_dtype(str(tmp_path), config) == torch.bfloat16
    (tmp_path / "model.safetensors").unlink()
    assert stored_dtype(str(tmp_path), config) == torch.float16
    assert stored_dtype("no/such.gguf", config) == torch.float32
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}")  # a header of 2^63 bytes
    with pytest.raises(ConfigError, match=r"model\.safetensors is no whole safetensors file"):
        stored_dtype(str(tmp_path), config)
