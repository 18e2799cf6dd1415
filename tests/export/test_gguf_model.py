"""Export to GGUF: metadata, weights and tokenizer, read back with the gguf package and with transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layersearch.errors import ExportError, LayersearchError
from layersearch.export import SourceModel, export_model, read_source
from layersearch.export.gguf_tokenizer import split_name
from layersearch.schedule import Schedule
from tests.helpers import gguf_models, hf_models

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra gguf")
MIXED = Schedule.parse("full window:5 window:5")


def write(
    held: SourceModel, out: Path, schedule: Schedule = MIXED
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return what a written file holds: its metadata, its tensors as gguf reads them, and the note."""
    import gguf

    _, note = export_model(schedule, "gguf", held, out=out)
    reader = gguf.GGUFReader(out / "model.gguf")
    fields = {name: entry.contents() for name, entry in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}, note


def source(folder: Path, family: str = "llama", **changes: Any) -> SourceModel:
    return read_source(str(hf_models.save(family, folder / "source", **changes)))


def test_gguf_of_a_llama_with_windows_is_granite_swa_with_inert_sinks(tmp_path: Path) -> None:
    held = source(tmp_path, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    fields, tensors, note = write(held, tmp_path / "out")
    assert fields["general.architecture"] == "granite_swa"
    assert fields["granite_swa.attention.sliding_window"] == 5
    assert fields["granite_swa.attention.sliding_window_pattern"] == [False, True, True]
    assert fields["granite_swa.attention.scale"] == pytest.approx(8**-0.5)
    multipliers = {fields[f"granite_swa.{key}"] for key in ("embedding_scale", "residual_scale", "logit_scale")}
    assert multipliers == {1.0}
    assert fields["granite_swa.rope.freq_base"] == 700.0
    assert fields["granite_swa.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    for layer in range(3):
        assert tensors[f"blk.{layer}.attn_sinks.weight"].data.tolist() == [-1e4] * 4
    assert fields["tokenizer.ggml.model"] == "no_vocab"
    assert note is not None
    assert "no tokenizer (no_vocab)" in note


def test_gguf_all_full_is_a_llama_that_transformers_reads_back(tmp_path: Path) -> None:
    held = source(tmp_path)
    fields, tensors, _ = write(held, tmp_path / "out", Schedule.parse("full*3"))
    assert fields["general.architecture"] == "llama"
    assert not [key for key in fields if "sliding" in key]
    assert not [name for name in tensors if "sinks" in name]
    again = read_source(str(tmp_path / "out" / "model.gguf"))
    assert held.tensors is not None
    assert again.tensors is not None
    wanted, found = held.tensors(), again.tensors()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    for key in ("hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "vocab_size"):
        assert again.values[key] == pytest.approx(held.values[key]), key


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_gguf_matrices_keep_their_type_and_vectors_are_float32(dtype: str, stored: str, tmp_path: Path) -> None:
    hf_models.make("llama").to(getattr(torch, dtype)).save_pretrained(tmp_path / "source")
    _, tensors, _ = write(read_source(str(tmp_path / "source")), tmp_path / "out")
    kinds = {(len(tensor.shape) > 1, tensor.tensor_type.name) for tensor in tensors.values()}
    assert kinds == {(True, stored), (False, "F32")}


def test_gguf_from_a_gguf_file_keeps_weights_and_tokenizer_to_the_byte(tmp_path: Path) -> None:
    import gguf

    gguf_models.save(tmp_path / "tiny.gguf", rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    before = gguf.GGUFReader(tmp_path / "tiny.gguf")
    fields, tensors, note = write(read_source(str(tmp_path / "tiny.gguf")), tmp_path / "out")
    assert note is None
    assert fields["general.architecture"] == "granite_swa"
    assert not [key for key in fields if key.startswith("llama.")]
    assert fields["granite_swa.rope.freq_base"] == 700.0
    for name, entry in before.fields.items():
        if name.startswith("tokenizer."):
            assert fields[name] == entry.contents(), name
    for tensor in before.tensors:
        assert np.array_equal(tensors[tensor.name].data, tensor.data)
        assert tensors[tensor.name].tensor_type == tensor.tensor_type
    assert len(tensors) == len(before.tensors) + 3
    # Its own file can be written with another schedule, and as a Llama again.
    again, _, _ = write(SourceModel(name="x", values={}, gguf=tmp_path / "out" / "model.gguf"), tmp_path / "again",
                        Schedule.parse("window:7 full full"))  # fmt: skip
    assert again["granite_swa.attention.sliding_window"] == 7
    assert again["granite_swa.attention.sliding_window_pattern"] == [True, False, False]
    assert again["layersearch.schedule"] == "window:7 full*2"


def test_gguf_tokenizer_of_a_folder_is_written_token_by_token(tmp_path: Path) -> None:
    tokenizer = gguf_models.train_bpe(gguf_models.TEXTS, 300)
    size = tokenizer.get_vocab_size()
    folder = hf_models.save("llama", tmp_path / "source", vocab_size=size + 3, eos_token_id=0)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields, _, note = write(read_source(str(folder)), tmp_path / "out")
    assert note is None
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:size] == [tokenizer.id_to_token(number) for number in range(size)]
    assert tokens[size:] == [f"[PAD{number}]" for number in range(size, size + 3)]
    assert fields["tokenizer.ggml.token_type"][:2] == [3, 1]
    assert fields["tokenizer.ggml.eos_token_id"] == 0
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "no tokenizer.json that holds a vocabulary"),
        ('{"model": {"type": "WordPiece", "vocab": {"a": 0}}}', "is WordPiece and no byte-level BPE"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "Whitespace"}}', "no name for how"),
    ],
)
def test_gguf_tokenizer_that_is_not_known_is_left_out_and_said(content: str, words: str, tmp_path: Path) -> None:
    folder = hf_models.save("llama", tmp_path / "source")
    (folder / "tokenizer.json").write_text(content)
    fields, _, note = write(read_source(str(folder)), tmp_path / "out")
    assert fields["tokenizer.ggml.model"] == "no_vocab"
    assert note is not None
    assert words in note


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (BYTES, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTES]}, None),
        (BYTES | {"add_prefix_space": True}, None),
        (BYTES | {"use_regex": False}, None),
        ({"type": "Metaspace"}, None),
        (None, None),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "behavior": "Isolated",
                        "invert": False,
                        "pattern": {
                            "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
                        },
                    },
                    BYTES | {"use_regex": False},
                ],
            },
            "llama-bpe",
        ),
    ],
)
def test_split_name_known_pre_tokenizers_have_llama_cpps_name(pre_tokenizer: Any, name: str | None) -> None:
    assert split_name(pre_tokenizer) == name


@pytest.mark.parametrize(
    ("family", "changes", "text", "words"),
    [
        ("qwen3", {}, "full window:5 full", "passes over windows in a qwen3"),
        ("smollm3", {}, "full window:5 full", "passes over windows in a smollm3"),
        ("llama", {}, "full*2", "layers"),
        ("llama", {"hidden_act": "gelu"}, "full window:5 full", "hidden_act is gelu"),
        ("gemma3_text", {}, "full window:5 full", "query_pre_attn_scalar is 256"),
    ],
)
def test_gguf_of_a_model_that_llama_cpp_runs_otherwise_is_refused(
    family: str, changes: dict[str, Any], text: str, words: str, tmp_path: Path
) -> None:
    held = source(tmp_path, family, **changes)
    with pytest.raises(LayersearchError, match=words):
        export_model(Schedule.parse(text), "gguf", held, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gguf_without_weights_is_refused(tmp_path: Path) -> None:
    hf_models.make("llama").config.save_pretrained(tmp_path / "source")
    with pytest.raises(ExportError, match=r"writes weights, and .* holds none"):
        export_model(MIXED, "gguf", read_source(str(tmp_path / "source")), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"), [(b"no model", "is no GGUF file"), (b"GGUF\3\0\0\0", "cut off or damaged")]
)
def test_gguf_from_a_damaged_file_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    held = SourceModel(name=str(tmp_path / "bad.gguf"), values={}, gguf=tmp_path / "bad.gguf")
    with pytest.raises(LayersearchError, match=words):
        export_model(MIXED, "gguf", held, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gguf_from_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    gguf_models.save(tmp_path / "odd.gguf", architecture="qwen3")
    held = SourceModel(name="odd", values={}, gguf=tmp_path / "odd.gguf")
    with pytest.raises(ExportError, match="passes over windows in its architecture 'qwen3'"):
        export_model(MIXED, "gguf", held, out=tmp_path / "out")
