"""Every family of `--to hf`, proven in the real transformers; types that ignore a schedule are detected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export import export
from layersearch.export.families import FAMILIES, IGNORE_LAYER_TYPES
from layersearch.export.files import write_files
from layersearch.export.hf import save_weights
from layersearch.export.verify import Proof, verify
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

torch.set_num_threads(1)
TOKENS = 24
SHAPES = ["{} full {}", "full {} {}", "full*2"]
DECODERS = [name for name, family in FAMILIES.items() if family.decoder_weights]


def schedule(family: str, shape: str, size: int = 5) -> Schedule:
    kind = next(kind for kind in FAMILIES[family].layer_types if kind != "full")
    return Schedule.parse(shape.replace("{}", f"{kind}:{size}"))


def size(asked: Schedule, family: str, **given: Any) -> ModelConfig:
    held = FAMILIES[family]
    sizes = {
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2 if held.gqa else 4,
        "d_ff": 48,
        "qk_norm": held.qk_norm,
    }
    return ModelConfig(n_layers=len(asked), **sizes | given)


def written(asked: Schedule, family: str, out: Path, **given: Any) -> Path:
    model = size(asked, family, **given)
    export(asked, "hf", model=model, vocab_size=61, seq_len=TOKENS, out=out, family=family)
    return out


def changed(folder: Path, **fields: Any) -> Path:
    """Set fields of a folder's config.json; None: take them out."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def problem(proof: Proof) -> str:
    assert not proof.proven
    assert proof.problem
    return proof.problem


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_every_family_obeys_its_schedule(family: str, shape: str, tmp_path: Path) -> None:
    asked = schedule(family, shape)
    proof = verify(written(asked, family, tmp_path))
    assert proof.proven, proof.problem
    assert proof.architecture == FAMILIES[family].architecture
    assert [layer.pairs for layer in proof.layers] == [proof.tokens**2] * len(asked)
    assert all(layer.by_head for layer in proof.layers)
    assert proof.texts.longest == proof.tokens >= 32
    comparable = family in DECODERS and not FAMILIES[family].inert_weights  # random sinks do something
    assert (proof.logits is not None) == comparable, proof.logits_reason


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_every_family_with_eager_attention_obeys_too(family: str, tmp_path: Path) -> None:
    proof = verify(written(schedule(family, SHAPES[0]), family, tmp_path), attention="eager")
    assert proof.proven, proof.problem


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_schedule_other_than_the_folders_is_not_proven(family: str, tmp_path: Path) -> None:
    folder = written(schedule(family, "{} full {}"), family, tmp_path)
    for shape, window in (("{} {} full", 5), ("{} full {}", 6)):
        proof = verify(folder, schedule=schedule(family, shape, window))
        wanted = [a == b for a, b in zip(schedule(family, "{} full {}"), schedule(family, shape, window), strict=True)]
        assert [layer.proven for layer in proof.layers] == wanted
        assert "unlike" in problem(proof)


@pytest.mark.slow
@pytest.mark.parametrize("family", IGNORE_LAYER_TYPES)
def test_verify_families_that_ignore_the_schedule_are_caught(family: str, tmp_path: Path) -> None:
    asked = Schedule.parse("window:5 full window:5 full")
    folder = changed(
        written(asked, "ministral", tmp_path),
        model_type=family,
        architectures=None,
        use_sliding_window=True,
        pad_token_id=0,
    )
    if family in ("mixtral", "qwen3_moe"):
        changed(folder, num_local_experts=2, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
    proof = verify(folder)
    assert "unlike" in problem(proof)
    # Llama sees everything; the others apply the one window they know to every layer.
    assert [layer.proven for layer in proof.layers] == [span.is_full == (family == "llama") for span in asked]


@pytest.mark.slow
def test_verify_forgetful_cache_with_right_masks_is_caught(tmp_path: Path) -> None:
    # This Llama sees everything, as asked; its cache drops what layer_types says, and the text goes another way.
    folder = changed(written(Schedule.parse("window:5 full"), "ministral", tmp_path), model_type="llama")
    proof = verify(folder, schedule=Schedule.parse("full*2"))
    assert all(layer.proven for layer in proof.layers)
    assert "with a cache" in problem(proof)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_verify_window_not_switched_on_is_caught(family: str, tmp_path: Path) -> None:
    folder = changed(written(schedule(family, "{} full"), family, tmp_path), use_sliding_window=None)
    with pytest.raises(ExportError, match=r"does not run with this config\.json"):
        verify(folder)


@pytest.mark.slow
def test_export_modernbert_window_field_is_twice_its_window(tmp_path: Path) -> None:
    folder = written(Schedule.parse("window:5 full"), "modernbert-decoder", tmp_path)
    assert json.loads((folder / "config.json").read_text())["local_attention"] == 10
    changed(folder, local_attention=5, sliding_window=None)
    assert [layer.too_few > 0 for layer in verify(folder).layers] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("family", DECODERS)
def test_verify_trained_weights_are_loaded_and_compared(family: str, tmp_path: Path) -> None:
    asked = schedule(family, "{} full {}")
    model = size(asked, family, tie_embeddings=family == "qwen3")
    folder = written(asked, family, tmp_path, tie_embeddings=model.tie_embeddings)
    torch.manual_seed(1)
    decoder = Decoder(model, 61, asked)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    save_weights(decoder.state_dict(), family, model=model, out=folder)
    proof = verify(folder)
    assert proof.proven, proof.problem
    assert proof.weights == "the folder's own"
    assert proof.texts.longest == TOKENS  # the model's own limit holds where its weights are used
    assert proof.logits is not None
    assert proof.logits.difference < 1e-5 < 1e-2 < proof.logits.all_full


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "text", "pieces"),
    [("ministral", "window:300 full", 2), ("llama4", "block:150 full", 3)],
)
def test_verify_wide_model_is_shrunk_and_long_spans_tested_at_their_edges(
    family: str, text: str, pieces: int, tmp_path: Path
) -> None:
    asked = Schedule.parse(text)
    model = ModelConfig(n_layers=2, d_model=2048, n_heads=16, n_kv_heads=4, d_ff=8192)
    export(asked, "hf", model=model, vocab_size=50_000, seq_len=1024, out=tmp_path, family=family)
    proof = verify(tmp_path)
    assert proof.proven, proof.problem
    assert proof.shrunk
    assert proof.keys < 30 < 300 < proof.tokens
    assert asked[0].size is not None
    assert proof.texts.longest >= (pieces - 1) * asked[0].size
    off = Schedule.parse(text.replace("300", "301").replace("150", "151"))
    assert [layer.proven for layer in verify(tmp_path, schedule=off).layers] == [False, True]


@pytest.mark.slow
def test_verify_positions_scaled_per_dimension_do_not_hinder_shrinking(tmp_path: Path) -> None:
    asked = Schedule.parse("window:5 full")
    model = ModelConfig(n_layers=2, d_model=256, n_heads=4, n_kv_heads=2, d_ff=512)
    export(asked, "hf", model=model, vocab_size=61, seq_len=64, out=tmp_path, family="qwen3")
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "original_max_position_embeddings": 32}
    changed(tmp_path, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors})
    proof = verify(tmp_path)
    assert proof.shrunk
    assert proof.proven, proof.problem


@pytest.mark.slow
def test_verify_export_prints_the_proof_and_exits_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(written(Schedule.parse("window:5 full"), "qwen3", tmp_path))
    assert main(["verify-export", folder]) == 0
    shown = capsys.readouterr().out
    assert "Qwen3ForCausalLM" in shown
    assert shown.rstrip().endswith("PROVEN: every layer does what the schedule says")
    assert main(["verify-export", folder, "--schedule", "full*2"]) == 1
    assert "NOT PROVEN: layer 0: token 5 does not see token 0, unlike full" in capsys.readouterr().out
    assert main(["verify-export", folder, "--json", "--attention", "eager"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["proven"] is True
    assert [layer["too_many"] for layer in held["layers"]] == [0, 0]


def test_export_model_with_windows_of_its_own_is_refused_before_loading(tmp_path: Path) -> None:
    folder = changed(
        written(Schedule.parse("window:5 full"), "ministral", tmp_path), per_layer_config={"0": {"sliding_window": 3}}
    )
    with pytest.raises(ExportError, match="per_layer_config gives each layer its own window"):
        verify(folder)
    with pytest.raises(ExportError, match="sliding_window gives each layer"):
        verify(changed(folder, per_layer_config=None, sliding_window=[5, 24]))


@pytest.mark.slow
def test_verify_folder_without_schedule_takes_the_given_one(tmp_path: Path) -> None:
    folder = written(Schedule.parse("window:5 full"), "qwen2", tmp_path)
    (folder / "schedule.yaml").rename(folder / "other.yaml")
    with pytest.raises(ExportError, match=r"schedule\.yaml is missing"):
        verify(folder)
    assert verify(folder, schedule=Schedule.parse("window:5 full")).proven
    write_files(folder, {}, Schedule.parse("window:5 full"), form="json")
    assert verify(folder).proven
