"""A converted model of each family, saved and proven: what its folder does is what its schedule says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from layersearch.convert.save import REMOTE, save_model, target_family
from layersearch.errors import UserError
from layersearch.export.verify import verify
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Schedule
from tests.helpers.hf_models import FAMILIES, LAYERS, make

torch.set_num_threads(1)
WINDOWS = Schedule.parse("window:5 full window:5")
STOCK = {"llama": "ministral", "mistral": "ministral", "ministral": "ministral", "qwen2": "qwen2", "qwen3": "qwen3",
         "smollm3": "smollm3"}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_save_model_converted_is_saved_where_its_schedule_holds(family: str, tmp_path: Path) -> None:
    routed = HFDecoder(make(family))
    routed.set_schedule(WINDOWS)
    target = target_family(routed.model, WINDOWS)
    assert target == STOCK.get(family, REMOTE)
    save_model(routed, target, tmp_path / "out", evidence={"loss": 1.0})
    remote = target == REMOTE
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=remote)
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = routed.logits(tokens)
        assert (loaded(input_ids=tokens).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()
    if not remote:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == target
    assert verify(tmp_path / "out", trust_remote_code=remote).proven


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_save_model_converted_twice_is_saved_again(family: str, tmp_path: Path) -> None:
    """Its own modelling file is not run for that; what it sees is the original that losses are compared with."""
    routed = HFDecoder(make(family))
    schedule = Schedule.parse("block:5 full window:4/2")
    routed.set_schedule(schedule)
    save_model(routed, REMOTE, tmp_path / "out", evidence={})
    (tmp_path / "out" / "modeling_layersearch.py").write_text("raise SystemExit('it was run')\n")
    again = load_pretrained(str(tmp_path / "out"))
    assert again.schedule == again.original == schedule
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(again.logits(tokens), routed.logits(tokens), atol=1e-5)
    assert target_family(again.model, WINDOWS) == STOCK.get(family, REMOTE)


@pytest.mark.parametrize("text", ["block:5 full*2", "window:5 window:6 full", "window:5/2 full*2", "full*3"])
def test_save_model_schedule_without_stock_family_brings_a_modeling_file(text: str) -> None:
    schedule = Schedule.parse(text)
    assert len(schedule) == LAYERS
    held = schedule == Schedule.parse("full*3")
    assert target_family(make("llama"), schedule) == ("ministral" if held else REMOTE)
    assert target_family(make("llama"), schedule, REMOTE) == REMOTE


def test_save_model_weights_the_stock_family_lacks_are_refused_by_name(tmp_path: Path) -> None:
    """A Llama with biases has weights that no Ministral loads; said before anything is trained."""
    routed = HFDecoder(make("llama", attention_bias=True))
    routed.set_schedule(WINDOWS)
    with pytest.raises(
        UserError, match=r"--family ministral cannot load the weights \(.*bias\); give --family hf-remote"
    ):
        target_family(routed.model, WINDOWS, "ministral")
    assert target_family(routed.model, WINDOWS) == REMOTE
    save_model(routed, REMOTE, tmp_path / "remote", evidence={})
    assert verify(tmp_path / "remote", trust_remote_code=True).proven
