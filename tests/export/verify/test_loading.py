"""Bad folders for verify-export: one line, exit code 2, and no code of the folder runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.export.hf import save_weights
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

ASKED = Schedule.parse("window:5 full")
MODEL = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
Breaks = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an export with weights."""
    out = tmp_path / "export"
    export(ASKED, "hf", model=MODEL, vocab_size=61, seq_len=24, out=out, family="ministral")
    torch.manual_seed(0)
    save_weights(Decoder(MODEL, 61, ASKED).state_dict(), "ministral", model=MODEL, out=out)
    return out


def edit(**fields: Any) -> Breaks:
    def breaks(at: Path) -> None:
        values = json.loads((at / "config.json").read_text()) | fields
        (at / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return breaks


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Breaks:
    def breaks(at: Path) -> None:
        file = at / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return breaks


def shards(present: list[str]) -> Breaks:
    def breaks(at: Path) -> None:
        state = load_file(at / "model.safetensors")
        (at / "model.safetensors").unlink()
        names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        placed = {name: names[index % 3] for index, name in enumerate(sorted(state))}
        for name in set(present) & set(names):
            part = {key: value for key, value in state.items() if placed[key] == name}
            save_file(part, at / name, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": placed}
        (at / "model.safetensors.index.json").write_text(json.dumps(index))

    return breaks


FIRST = "model.embed_tokens.weight"
CASES: dict[str, tuple[Breaks, list[str]]] = {
    "no folder": (lambda at: at.rename(at.parent / "gone"), ["config.json is missing", "export --to hf"]),
    "no config": (lambda at: (at / "config.json").unlink(), ["config.json is missing"]),
    "config is no JSON": (lambda at: (at / "config.json").write_text("{"), ["no JSON text"]),
    "config is a list": (lambda at: (at / "config.json").write_text("[]"), ["expected a mapping, found list"]),
    "no schedule": (lambda at: (at / "schedule.yaml").unlink(), ["schedule.yaml is missing", "--schedule"]),
    "schedule that is none": (lambda at: (at / "schedule.yaml").write_text("full*"), ["schedule.yaml"]),
    "schedule of another length": (
        lambda at: (at / "schedule.yaml").write_text("schedule: full*3"),
        ["the schedule has 3 layers, config.json 2", "give the schedule of this model"],
    ),
    "unknown model type": (edit(model_type="ministrel"), ["transformers refuses it", "ministrel"]),
    "no model type": (edit(model_type=None), ["transformers refuses it"]),
    "an encoder": (edit(model_type="vit"), ["AutoModelForCausalLM cannot build it", "ViTConfig"]),
    "a bad layer type": (edit(layer_types=["slid", "full_attention"]), ["transformers refuses it", "layer_types"]),
    "windows by layer": (edit(sliding_window=[5, 6]), ["sliding_window gives each layer its own window"]),
    "per_layer_config": (edit(per_layer_config={"1": {"sliding_window": 6}}), ["per_layer_config", "hf-remote"]),
    "a prompt that sees later tokens": (edit(model_type="paligemma"), ["in a paligemma the prompt sees later tokens"]),
    "code of its own": (
        edit(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ["auto_map", "--trust-remote-code"],
    ),
    "missing shard": (
        shards(["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]),
        ["shard model-00002-of-00003.safetensors of 3 is missing", "copy it there"],
    ),
    "missing shards": (
        shards(["model-00001-of-00003.safetensors"]),
        ["shard model-00002-of-00003.safetensors and 1 more of 3 is missing"],
    ),
    "index that is none": (
        lambda at: (at / "model.safetensors.index.json").write_text("{}"),
        ["model.safetensors.index.json: no index of weights"],
    ),
    "torn weights": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-9]),
        ["model.safetensors: damaged"],
    ),
    "pickled weights": (
        lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
        ["pytorch_model.bin: pickled weights", "safetensors"],
    ),
    "weights of fewer layers": (
        tensors(lambda state: {name: value for name, value in state.items() if ".layers.1." not in name}),
        ["another architecture", "missing such as model.layers.1."],
    ),
    "weights of another family": (
        tensors(lambda state: state | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        ["another architecture", "unexpected such as model.layers.0.self_attn.q_norm.weight"],
    ),
    "weights of another width": (
        tensors(lambda state: state | {FIRST: torch.zeros(61, 16)}),
        ["another architecture", f"mismatched such as {FIRST}"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_verify_export_bad_folder_is_refused_in_one_line_with_exit_code_2(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, words = CASES[case]
    (folder / "evil.py").write_text("raise SystemExit('run unasked')")
    breaks(folder)
    assert main(["verify-export", str(folder)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("layersearch: ")
    assert shown.err.count("\n") == 1, shown.err
    assert [word for word in words if word not in shown.err] == [], shown.err


def test_verify_whole_shards_are_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards([f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)])(folder)
    assert main(["verify-export", str(folder)]) == 0
    assert "the folder's own weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--schedule", "full*3"], "the schedule has 3 layers"),
        (["--schedule", "full windw:5"], "did you mean 'window'"),
        (["--attention", "quick"], "quick"),
        (["--schedule", "window:5/2@9 full"], "dilates more heads than the model's 4"),
        (["--schedule", "window:50000 full"], "more than 20000 are not tested"),
    ],
)
def test_verify_export_wrong_flag_is_refused_in_one_line(
    extra: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-export", str(folder), *extra]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown
