"""A user's own configuration: only keys of the schedule change, and the result is proven."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers

from layersearch.cli.main import main
from layersearch.errors import ExportError, LayersearchError
from layersearch.export.edit_config import read_user_config, write_user_config
from layersearch.export.families import FAMILIES
from layersearch.export.model_file import read_model_file
from layersearch.export.verify import verify
from layersearch.schedule import Schedule

WORDS = ("full_attention", "sliding_attention")
# fmt: off
SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4,
                         "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 40, "pad_token_id": 0}
# fmt: on
MORE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
    "exaone4": {"num_key_value_heads": 4},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4": {
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 20,
    },
    "ministral": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "modernbert-decoder": {"bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
}


def given_config(family: str, folder: Path, **fields: Any) -> Path:
    """Write a configuration as transformers itself saves it, with the family's own defaults for the rest."""
    held = FAMILIES[family]
    values = SIZES | MORE.get(family, {}) | fields
    kind = held.config_class
    known = {name: value for name, value in values.items() if hasattr(kind(), name)}
    if "head_dim" not in known and hasattr(kind(), "head_dim"):
        known["head_dim"] = 8
    kind(**known).save_pretrained(folder)
    return folder


def asked(family: str, shape: str = "{} full {} {}", size: int = 5) -> Schedule:
    kind = next(kind for kind in FAMILIES[family].layer_types if kind != "full")
    return Schedule.parse(shape.replace("{}", f"{kind}:{size}"))


def write(path: Path, schedule: Schedule, out: Path) -> str:
    write_user_config(schedule, read_user_config(path), out=out)
    return (out / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_write_user_config_changes_only_schedule_keys_and_is_proven(family: str, tmp_path: Path) -> None:
    before = (given_config(family, tmp_path / "given") / "config.json").read_text()
    after = write(tmp_path / "given", asked(family), tmp_path / "out")
    old, new = json.loads(before), json.loads(after)
    held = FAMILIES[family]
    may = {*held.layer_fields, *held.sparse_flags, *held.size_fields}
    assert {key for key in new if old.get(key) != new[key]} <= may
    assert list(old) == list(new)[: len(old)]
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem
    # Once more the same: not a byte changes.
    assert write(tmp_path / "out", asked(family), tmp_path / "again") == after


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ministral", "gemma2", "gpt_neo", "llama4"])
def test_write_user_config_all_full_replaces_windows(family: str, tmp_path: Path) -> None:
    given_config(family, tmp_path / "given", sliding_window=None)
    write(tmp_path / "given", Schedule.parse("full*4"), tmp_path / "out")
    assert verify(tmp_path / "out").proven


BARE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def bare(folder: Path, **fields: Any) -> Path:
    """Write a configuration of sizes alone: whatever else the class needs it has to fill in."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BARE | fields))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"num_attention_heads": 16},  # a Llama's key-value heads are then 16, a Mistral's 8
        {"num_key_value_heads": 2, "rope_theta": 5e5, "rms_norm_eps": 1e-5},
        {"num_attention_heads": 16, "head_dim": 8, "vocab_size": 77},
    ],
)
@pytest.mark.parametrize("other", ["llama", "mistral"])
def test_config_of_a_class_that_ignores_schedules_becomes_the_family_with_all_it_filled_in(
    other: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    folder = bare(tmp_path / "given", model_type=other, **fields)
    _, note = write_user_config(Schedule.parse("window:8*2 full"), read_user_config(folder), out=tmp_path / "out")
    assert note is not None
    assert f"{other} ignores layer_types: written as ministral" in note
    before, after = (transformers.AutoConfig.from_pretrained(one) for one in (folder, tmp_path / "out"))
    assert after.architectures == ["MinistralForCausalLM"]
    own = {"model_type", "architectures", "layer_types", "sliding_window", "_name_or_path"}
    for name in before.to_dict().keys() & after.to_dict().keys() - own:
        assert getattr(before, name) == getattr(after, name), name
    shapes = []
    for config in (before, after):
        with torch.device("meta"):
            state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
        shapes.append({name: tensor.shape for name, tensor in state.items()})
    assert shapes[0] == shapes[1]
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_config_of_sizes_alone_is_proven_or_refused_by_name(family: str, tmp_path: Path) -> None:
    folder = bare(tmp_path / "given", model_type=FAMILIES[family].model_type, num_key_value_heads=4, vocab_size=61)
    try:
        write_user_config(asked(family, "{} full {}"), read_user_config(folder), out=tmp_path / "out")
    except ExportError as error:
        assert not (tmp_path / "out").exists()
        words = {"ministral": "set head_dim", "smollm3": "padding_idx", "modernbert-decoder": "padding_idx"}
        words["gpt_neo"] = "attention_layers"
        assert words[family] in str(error).lower()  # noqa: PT017
    else:
        assert verify(tmp_path / "out").proven


def test_config_without_key_value_heads_that_its_class_fills_in_wrongly_is_refused(tmp_path: Path) -> None:
    folder = bare(tmp_path / "given", model_type="qwen2")
    with pytest.raises(ExportError, match="num_key_value_heads is 32 and does not divide num_attention_heads 4"):
        write(folder, Schedule.parse("window:8*2 full"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_config_of_a_llama_with_biases_is_refused_by_name(field: str, tmp_path: Path) -> None:
    folder = bare(tmp_path / "given", model_type="llama", **{field: True})
    with pytest.raises(ExportError, match=f"{field} is True, and ministral has no {field}"):
        read_user_config(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "field"), [("gemma3", "sliding_window"), ("llama4", "attention_chunk_size")])
def test_read_user_config_text_part_of_a_multimodal_config_is_found_and_proven(
    family: str, field: str, tmp_path: Path
) -> None:
    given_config(family, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": family, "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(whole, indent=2))
    config = read_user_config(tmp_path)
    assert (config.family.name, config.nested) == (family, True)
    after = json.loads(write(tmp_path, asked(family), tmp_path / "out"))
    assert after["text_config"][field] == 5
    assert {key: value for key, value in after.items() if key != "text_config"} == {
        key: value for key, value in whole.items() if key != "text_config"
    }
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem
    assert proof.architecture == FAMILIES[family].architecture


def rotated_by(folder: Path) -> list[list[float] | None]:
    """Return the angles that each layer's queries and keys are rotated by, as transformers runs the model."""
    config = transformers.AutoConfig.from_pretrained(folder)
    module: Any = importlib.import_module(transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    found: list[list[float] | None] = [None] * config.num_hidden_layers
    now, rotate = 0, module.apply_rotary_pos_emb

    def note_layer(number: int) -> Callable[..., None]:
        def hook(*given: Any) -> None:
            nonlocal now
            now = number

        return hook

    def noted(q: Any, k: Any, cos: Any, sin: Any, *more: Any, **named: Any) -> Any:
        found[now] = cos.flatten().tolist()
        return rotate(q, k, cos, sin, *more, **named)

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(note_layer(number))
    with mock.patch.object(module, "apply_rotary_pos_emb", noted), torch.no_grad():
        model(input_ids=torch.arange(9)[None], use_cache=False)
    return found


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gemma3", {}),
        ("gemma3", {"rope_parameters": {word: {"rope_type": "default", "rope_theta": 1e4} for word in WORDS}}),
        ("olmo3", {}),
        ("cohere2", {}),
        ("exaone4", {"sliding_window": None}),
        ("exaone4", {"sliding_window": 9}),
        ("qwen3", {}),
        ("smollm3", {}),
        ("llama4", {}),
    ],
)
def test_write_user_config_names_the_layers_whose_positions_change_and_no_other(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    given_config(family, tmp_path / "given", layer_types=["full_attention"] * 4, **fields)
    _, note = write_user_config(asked(family), read_user_config(tmp_path / "given"), out=tmp_path / "out")
    if family == "llama4":  # rotates by complex numbers, in the layers that no_rope_layers names
        assert note is None
        return
    before, after = rotated_by(tmp_path / "given"), rotated_by(tmp_path / "out")
    changed = [str(layer) for layer in range(4) if before[layer] != after[layer]]
    named = re.search(r"the positions of layers? ([\d, ]+) change;", note or "")
    assert (named[1].split(", ") if named else []) == changed


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mistral", "mixtral", "phi3", "starcoder2", "qwen3_moe"])
def test_write_user_config_one_window_in_all_layers_keeps_a_class_that_ignores_layer_types(
    model_type: str, tmp_path: Path
) -> None:
    folder = bare(tmp_path / "given", model_type=model_type, num_key_value_heads=2, vocab_size=61, pad_token_id=0)
    sizes = {"moe_intermediate_size": 8, "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    values = json.loads((folder / "config.json").read_text()) | sizes | {"layer_types": ["full_attention"] * 3}
    for text in ("window:5*3", "full*3"):
        (folder / "config.json").write_text(json.dumps(values))
        out = tmp_path / text.partition("*")[0].replace(":", "")
        after = json.loads(write(folder, Schedule.parse(text), out))
        changed = {key for key in after if after.get(key) != values.get(key)}
        assert changed <= {"sliding_window", "use_sliding_window", "layer_types"}
        proof = verify(out)
        assert proof.proven, proof.problem
        values = after  # the window is taken out again
    assert str(read_model_file(str(tmp_path / "full")).schedule) == "full*3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "schedule"),
    [
        ({"sliding_window": 8, "sliding_window_pattern": "LLLG"}, "window:5 full*2"),
        ({"sliding_window": None}, "window:5*2 full"),
        ({"sliding_window": None, "sliding_window_pattern": None}, "full*3"),
    ],
)
def test_write_user_config_exaone4_without_layer_types_is_given_them(
    fields: dict[str, Any], schedule: str, tmp_path: Path
) -> None:
    sizes = {"num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 40}
    folder = bare(tmp_path / "given", model_type="exaone4", **sizes, **fields)
    write(folder, Schedule.parse(schedule), tmp_path / "out")
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem


@pytest.mark.slow
def test_read_user_config_text_part_without_a_type_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    given_config("gemma3", tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    del text["model_type"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert read_user_config(tmp_path).family.name == "gemma3"
    after = json.loads(write(tmp_path, asked("gemma3"), tmp_path / "out"))
    assert "model_type" not in after["text_config"]
    proof = verify(tmp_path / "out")
    assert proof.proven, proof.problem


def test_write_user_config_whole_whose_images_were_not_looked_at_says_so(tmp_path: Path) -> None:
    given_config("qwen2", tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    for kind, said in (("llava", True), ("llava_onevision", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": text}))
        _, note = write_user_config(asked("qwen2"), read_user_config(tmp_path), out=tmp_path / kind)
        assert ("what llava's images see is not known" in (note or "")) == said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "phi3"}, "layer 1: full, but layer 0 has window:5: family phi3 has one span for all layers"),
        ({"model_type": "gpt2"}, "supports schedules; layersearch convert --model saves it with code of its own"),
        ({"model_type": "stablelm"}, "nor does layersearch convert save one for its weights; known: ministral"),
        ({"model_type": "internlm2", "auto_map": {"AutoConfig": "mine.Config"}}, "'internlm2' is of no family"),
        ({"model_type": "paligemma"}, "in a paligemma the prompt sees later tokens"),
        ({"model_type": "qwen4"}, "model_type 'qwen4' is of no family .* did you mean 'qwen"),
        ({"model_type": None}, "the key 'model_type' is missing"),
        ({"per_layer_config": {"0": {"sliding_window": 4}}}, "per_layer_config gives each layer its own window"),
        ({"sliding_window": [4, 8, 4, 8]}, "sliding_window gives each layer its own window"),
        ({"auto_map": {"AutoConfig": "mine.Config"}}, "auto_map names code of its own"),
        (
            {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5},
            r"the schedule has 4 layers, .*config\.json 5",
        ),
        ({"num_hidden_layers": 5}, "transformers refuses it .*num_hidden_layers"),
        ({"use_bidirectional_attention": True}, "no causal decoder"),
        ({"max_position_embeddings": 4}, "layer 0: window:5 is longer than the text of 4 tokens"),
    ],
)
def test_write_user_config_unchangeable_config_is_refused_and_nothing_is_written(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given_config("qwen3", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(LayersearchError, match=words):
        write(tmp_path, asked("qwen3"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "expected a mapping"), ("{", "no JSON text"), (None, r"config\.json is missing"), ("\xff", "no JSON text")],
)
def test_read_user_config_missing_configuration_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ExportError, match=words):
        read_user_config(tmp_path)


@pytest.mark.slow
def test_export_command_own_config_is_written_and_position_changes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given_config("cohere2", tmp_path / "given")
    line = ["export", "full window:5*3", "--to", "hf", "--config", str(tmp_path / "given")]
    assert main([*line, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "config.json" in shown
    assert "note: in family cohere2 full layers have no RoPE: the positions of layers 0, 3 change;" in shown
    assert main(["verify-export", str(tmp_path / "out")]) == 0
    for extra, words in (
        (["--recipe", "smoke"], "drop --recipe"),
        (["--family", "qwen3"], "is of family cohere2"),
        (["--to", "yaml"], "--model is for --to hf"),
        (["--out", str(tmp_path / "given")], "exists and differs"),
    ):
        assert main([*line, "--out", str(tmp_path / "other"), *extra]) == 2
        assert words in capsys.readouterr().err
