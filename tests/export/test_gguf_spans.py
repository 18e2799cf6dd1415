"""GGUF files by keys and shapes, as llama.cpp reads them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersearch.errors import LayersearchError
from layersearch.export.model_file import read_model_file
from layersearch.model.matrices import matrix_flops
from tests.helpers import gguf_models

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra gguf")
LAYERS = 4


def gguf_file(
    folder: Path,
    architecture: str,
    layers: int = LAYERS,
    *,
    tensors: dict[str, tuple[int, ...]] | None = None,
    **keys: Any,
) -> str:
    """Write a GGUF file of keys and empty tensors; a key's first dot is written as two underscores."""
    from gguf import GGUFWriter

    path = folder / "model.gguf"
    writer = GGUFWriter(path, architecture)
    base = {"block_count": layers, "embedding_length": 32, "attention.head_count": 4, "context_length": 64}
    for name, value in (base | {key.replace("__", "."): value for key, value in keys.items()}).items():
        full = f"{architecture}.{name}"
        writer.add_array(full, value) if isinstance(value, list) else writer.add_uint32(full, value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, shape in (tensors or {}).items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


WINDOW = {"attention__sliding_window": 8}


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "expected"),
    [
        ("gemma3", 8, WINDOW, "window:8*5 full window:8*2"),
        ("gemma3", 4, {**WINDOW, "attention__sliding_window_pattern": 2}, "window:8 full window:8 full"),
        (
            "gemma3",
            4,
            {**WINDOW, "attention__sliding_window_pattern": [False, True, True, False]},
            "full window:8*2 full",
        ),
        ("gemma3", 4, {}, "full*4"),
        ("gemma2", 4, {}, "window:4096 full window:4096 full"),
        ("gemma2", 4, WINDOW, "window:8 full window:8 full"),
        ("cohere2", 5, WINDOW, "window:8*3 full window:8"),
        ("olmo2", 4, {}, "full*4"),
        ("olmo2", 4, WINDOW, "window:8*3 full"),
        ("gpt-oss", 4, WINDOW, "window:8 full window:8 full"),
        ("granite_swa", 4, {**WINDOW, "attention__sliding_window_pattern": [True] * 4}, "window:8*4"),
        ("llama4", 5, {}, "block:8192*3 full block:8192"),
        ("llama4", 4, {"attention__sliding_window": 64}, "block:8192*3 full"),
        ("llama4", 4, {"attention__sliding_window": 0}, "full*4"),
        ("exaone4", 4, WINDOW, "full*4"),
        ("exaone4", 64, WINDOW, " ".join(["window:8*3 full"] * 16)),
        ("phi3", 4, WINDOW, "full*4"),
        ("llama", 4, {**WINDOW, "attention__sliding_window_pattern": [True] * 4}, "full*4"),
        ("qwen3", 4, {**WINDOW, "nextn_predict_layers": 1}, "full*3"),
    ],
)
def test_gguf_schedule_follows_the_architecture_s_rule(
    architecture: str, layers: int, keys: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert str(read_model_file(gguf_file(tmp_path, architecture, layers, **keys)).schedule) == expected


def test_gguf_sizes_are_read_from_their_keys(tmp_path: Path) -> None:
    plain = read_model_file(gguf_file(tmp_path, "llama"))
    assert (plain.n_heads, plain.n_kv_heads, plain.head_dim, plain.positions) == (4, 4, 8, 64)
    keys = {"attention__head_count_kv": [2] * LAYERS, "attention__key_length": 16}
    other = read_model_file(gguf_file(tmp_path, "llama", **keys))
    assert (other.n_heads, other.n_kv_heads, other.head_dim) == (4, 2, 16)


@pytest.mark.parametrize(
    ("architecture", "keys", "words"),
    [
        ("rwkv7", {}, "architecture 'rwkv7' is not known here; known: gemma2"),
        ("granite_swa", WINDOW, "sliding_window_pattern is missing"),
        ("gemma3", {**WINDOW, "attention__sliding_window_pattern": [True] * 2}, "names 2 of 4 layers"),
        ("llama", {"attention__head_count_kv": [2, 2, 1, 1]}, "head_count_kv differs from layer to layer"),
        ("llama", {"block_count": 4_000_000_000}, "block_count makes 4000000000 layers, not 1 to 100000"),
        ("llama", {"block_count": 0}, "block_count makes 0 layers"),
        ("llama", {"attention__head_count": 0}, "head_count is 0"),
        ("gemma3", {"attention__sliding_window": [8, 8, 8, 8]}, "sliding_window is no whole number"),
    ],
)
def test_gguf_file_that_no_schedule_describes_is_refused(
    architecture: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(LayersearchError, match=words):
        read_model_file(gguf_file(tmp_path, architecture, **keys))


def test_gguf_file_that_is_none_cut_off_or_missing_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = Path(gguf_file(tmp_path, "llama")).read_bytes()
    for name, content in (("text", b"no model"), ("cut", whole[:100]), ("empty", b"")):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(LayersearchError, match=rf"{name}\.gguf is no whole GGUF file"):
            read_model_file(str(tmp_path / f"{name}.gguf"))
    with pytest.raises(LayersearchError, match=r"no\.gguf cannot be read \(No such file"):
        read_model_file(str(tmp_path / "no.gguf"))


def test_gguf_matrix_flops_are_those_of_the_same_model_in_transformers(tmp_path: Path) -> None:
    model, _ = gguf_models.save(tmp_path / "tiny.gguf")
    found = read_model_file(str(tmp_path / "tiny.gguf"))
    assert found.token_flops() == matrix_flops(model.config, "it")
    assert (found.n_heads, found.n_kv_heads) == (model.config.num_attention_heads, model.config.num_key_value_heads)


def test_gguf_matrix_flops_count_a_token_s_experts_only_and_a_tied_head(tmp_path: Path) -> None:
    shapes = {
        "token_embd.weight": (11, 8),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.ffn_gate_inp.weight": (5, 8),
        "blk.0.ffn_up_exps.weight": (5, 20, 8),
        "blk.0.ffn_up_exps.bias": (5, 20),
        "rope_freqs.weight": (4,),
    }
    path = gguf_file(tmp_path, "qwen3moe", tensors=shapes, expert_used_count=2)
    assert read_model_file(path).token_flops() == {"projections": 64, "mlp": 40 + 2 * 160, "head": 88}
