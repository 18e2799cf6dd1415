"""Model files of others: the schedule that is read is the one that transformers runs, and FLOPs are fvcore's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.errors import LayersearchError
from layersearch.export.families import FAMILIES
from layersearch.export.hf import config_text, remote_config, stock_config
from layersearch.export.model_file import read_model_file
from layersearch.export.uniform import UNIFORM
from layersearch.export.verify import verify
from layersearch.model.fvcore_flops import ATTEND, PRODUCTS, traced_flops
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.matrices import matrix_flops
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops

torch.set_num_threads(1)
TOKENS = 40
MODEL = ModelConfig(n_layers=4, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48)
# fmt: off
BASE: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 6,
                        "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": TOKENS, "head_dim": 8,
                        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
MOE = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
# fmt: on


def file(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(BASE | fields))
    return str(folder / "config.json")


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Schedule]:
    """Draw a family and a schedule that it supports."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    sparse = next(kind for kind in FAMILIES[family].layer_types if kind != "full")
    term = st.sampled_from(["full", f"{sparse}:{draw(st.integers(1, TOKENS))}"])
    return family, Schedule.parse(" ".join(draw(st.lists(term, min_size=MODEL.n_layers, max_size=MODEL.n_layers))))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(written())
def test_read_model_file_gives_back_the_schedule_that_export_wrote(
    tmp_path_factory: pytest.TempPathFactory, asked: tuple[str, Schedule]
) -> None:
    family, schedule = asked
    path = tmp_path_factory.mktemp("written") / "config.json"
    path.write_text(config_text(schedule, FAMILIES[family], MODEL, 61, TOKENS))
    found = read_model_file(str(path))
    assert found.schedule == schedule
    assert (found.n_heads, found.n_kv_heads, found.head_dim, found.positions) == (4, 4, 8, TOKENS)


FILES: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3 default period": ({"model_type": "gemma3_text", "sliding_window": 5}, "window:5*5 full"),
    "gemma3 period 3": (
        {"model_type": "gemma3_text", "sliding_window": 5, "sliding_window_pattern": 3},
        "window:5*2 full window:5*2 full",
    ),
    "gemma2": ({"model_type": "gemma2", "sliding_window": 7}, "window:7 full window:7 full window:7 full"),
    "cohere2 default period": ({"model_type": "cohere2", "sliding_window": 5}, "window:5*3 full window:5*2"),
    "cohere2 period 2": (
        {"model_type": "cohere2", "sliding_window": 5, "sliding_window_pattern": 2},
        "window:5 full window:5 full window:5 full",
    ),
    "qwen2 without a window": ({"model_type": "qwen2", "sliding_window": 5, "max_window_layers": 2}, "full*6"),
    "qwen2 with max_window_layers": (
        {"model_type": "qwen2", "sliding_window": 5, "max_window_layers": 2, "use_sliding_window": True},
        "full*2 window:5*4",
    ),
    "qwen3 with layer_types": (
        {
            "model_type": "qwen3",
            "sliding_window": 5,
            "use_sliding_window": True,
            "max_window_layers": 0,
            "layer_types": ["full_attention", "sliding_attention"] * 3,
        },
        "full window:5 full window:5 full window:5",
    ),
    "smollm3": (
        {
            "model_type": "smollm3",
            "sliding_window": 5,
            "use_sliding_window": True,
            "no_rope_layers": [1, 0, 1, 1, 0, 1],
        },
        "full window:5 full*2 window:5 full",
    ),
    "exaone4 integer period": (
        {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": 3},
        "window:5*2 full window:5*2 full",
    ),
    "exaone4 letters": (
        {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": "LLG"},
        "window:5*2 full window:5*2 full",
    ),
    "exaone4 letters, last layer full": (
        {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": "LLLG"},
        "window:5*3 full window:5 full",
    ),
    "exaone4 without a window": ({"model_type": "exaone4", "sliding_window": None}, "full*6"),
    "gpt_neo": (
        {
            "model_type": "gpt_neo",
            "attention_types": [[["global", "local", "local"], 2]],
            "num_layers": 6,
            "num_heads": 4,
            "window_size": 5,
        },
        "full window:5*2 full window:5*2",
    ),
    "llama4 chunks": (
        {"model_type": "llama4_text", "attention_chunk_size": 8, "intermediate_size_mlp": 48, "moe_layers": []},
        "block:8*3 full block:8*2",
    ),
    "modernbert-decoder radius": (
        {"model_type": "modernbert-decoder", "local_attention": 10, "cls_token_id": 0, "sep_token_id": 0},
        "full window:5*2 full window:5*2",
    ),
    "gpt_oss": ({"model_type": "gpt_oss", "sliding_window": 5, **MOE}, "window:5 full window:5 full window:5 full"),
    "olmo3": ({"model_type": "olmo3", "sliding_window": 5}, "window:5*3 full window:5*2"),
    "granite_swa": ({"model_type": "granite_swa", "sliding_window": 5}, "full window:5*3 full window:5"),
    "ministral": ({"model_type": "ministral", "sliding_window": 5}, "window:5*6"),
    "llama that names a window": ({"model_type": "llama", "sliding_window": 5}, "full*6"),
    "mistral": ({"model_type": "mistral", "sliding_window": 5}, "window:5*6"),
    "mistral without a window": ({"model_type": "mistral", "sliding_window": None}, "full*6"),
    "mixtral": ({"model_type": "mixtral", "sliding_window": 5, **MOE}, "window:5*6"),
    "phi3": ({"model_type": "phi3", "sliding_window": 5}, "window:5*6"),
    "starcoder2": ({"model_type": "starcoder2", "sliding_window": 5}, "window:5*6"),
    "qwen3_moe without a window": ({"model_type": "qwen3_moe", "sliding_window": 5, **MOE}, "full*6"),
    "qwen3_moe": ({"model_type": "qwen3_moe", "sliding_window": 5, "use_sliding_window": True, **MOE}, "window:5*6"),
    "of no family, by experiment": ({"model_type": "cwm", "sliding_window": 5}, "full window:5*3 full window:5"),
    "of no family, without windows": ({"model_type": "olmo2"}, "full*6"),
}


def test_cost_and_schedule_commands_take_every_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {family.model_type for family in (*FAMILIES.values(), *UNIFORM.values())}
    assert known <= {fields["model_type"] for fields, _ in FILES.values()}
    first = {fields["model_type"]: (fields, expected) for fields, expected in reversed(FILES.values())}
    for fields, expected in (first[model_type] for model_type in sorted(known)):
        path = file(tmp_path, **fields)
        assert main(["schedule", path]) == 0
        assert capsys.readouterr().out == f"{expected}\n"
        assert main(["cost", str(tmp_path), "--model-flops", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        sizes = {"n_heads": found["n_heads"], "head_dim": found["head_dim"]}
        flops = attention_flops(Schedule.parse(expected), seq_len=TOKENS, **sizes)
        assert found["attention_flops"] == found["model_flops"]["attention"] == flops
        assert all(found["model_flops"][part] > 0 for part in ("projections", "mlp", "head")), fields


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_read_model_file_schedule_is_proven_to_be_what_transformers_runs(name: str, tmp_path: Path) -> None:
    fields, expected = FILES[name]
    found = read_model_file(file(tmp_path, **fields))
    assert str(found.schedule) == expected
    if isinstance(fields.get("sliding_window_pattern"), str) or fields.get("sliding_window", 1) is None:
        return  # transformers wants layer_types as well; what it then runs is proven for the other cases
    proof = verify(tmp_path, schedule=found.schedule)
    if name == "llama that names a window":  # the cache of transformers obeys it, its masks do not
        assert all(layer.proven for layer in proof.layers)
    else:
        assert proof.proven, proof.problem


@pytest.mark.parametrize("model_type", [None, "gemma3_text"])
def test_read_model_file_text_part_of_a_model_with_images_is_found(model_type: str | None, tmp_path: Path) -> None:
    text = {**BASE, "sliding_window": 5, "sliding_window_pattern": 2, "model_type": model_type}
    values = {"model_type": "gemma3", "text_config": {key: value for key, value in text.items() if value is not None}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert str(read_model_file(str(tmp_path)).schedule) == "window:5 full window:5 full window:5 full"


def test_read_model_file_of_a_modeling_file_gives_any_span_without_running_it(tmp_path: Path) -> None:
    schedule = Schedule.parse("window:5/2@2+sink:1 block:8 full window:3")
    remote_config(schedule, stock_config(MODEL, 61, TOKENS)).save_pretrained(tmp_path)
    found = read_model_file(str(tmp_path))
    assert (found.schedule, found.kind, found.n_heads) == (schedule, "llama", 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no key 'model_type'"),
        ({"model_type": "gemma5"}, "transformers knows no model_type 'gemma5'; did you mean 'gemma2'"),
        ({"model_type": "internlm9", "auto_map": {"AutoConfig": "x.Y"}}, "brings code of its own, which is not run"),
        ({"model_type": "roberta"}, "roberta is an encoder, which sees later tokens"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "deepseek_v3"}, "attention fails .*; give another architecture"),
        ({"model_type": "bloom"}, "does not use transformers' attention interface"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "sees later tokens"),
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma2"}}, "the prompt sees later tokens"),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 6},
            "set sliding_window and use_sliding_window",
        ),
        ({"model_type": "gemma2", "layer_types": ["linear_attention"] * 6}, "layer 0 is linear_attention"),
        ({"model_type": "llama", "num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"model_type": "gemma2", "sliding_window": [4] * 6}, "gives each layer its own window"),
        ({"model_type": "gemma2", "num_hidden_layers": "six"}, "transformers refuses it"),
    ],
)
def test_read_model_file_that_no_schedule_describes_is_refused(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(LayersearchError, match=words):
        read_model_file(file(tmp_path, **fields))


def test_read_model_file_run_folder_and_empty_folder_are_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": {}, "space": {}}')
    with pytest.raises(LayersearchError, match=r"is a run folder; give its winner\.yaml"):
        read_model_file(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(LayersearchError, match=r"config\.json is missing; give a config\.json"):
        read_model_file(str(tmp_path))
    (tmp_path / "a.gguf").touch()
    with pytest.raises(LayersearchError, match=r"name one of them, for example .*a\.gguf"):
        read_model_file(str(tmp_path))


COUNTED = ["gemma3 period 3", "gemma2", "cohere2 period 2", "qwen2 with max_window_layers", "qwen3 with layer_types",
           "smollm3", "exaone4 integer period", "gpt_oss", "olmo3", "granite_swa", "ministral", "mistral", "mixtral",
           "modernbert-decoder radius", "phi3", "starcoder2", "qwen3_moe", "of no family, without windows"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_model_flops_equal_fvcore_s_count_of_the_traced_model(name: str, tmp_path: Path) -> None:
    path = file(tmp_path, **FILES[name][0])
    found = read_model_file(path)
    config: Any = transformers.AutoConfig.from_pretrained(tmp_path)
    config._experts_implementation = "batched_mm"  # every token through its experts alone, whatever the router says
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    decoder = HFDecoder(model)
    assert decoder.original == found.schedule
    counts = traced_flops(decoder, TOKENS)
    sizes = {"seq_len": TOKENS, "n_heads": found.n_heads, "head_dim": found.head_dim}
    attention = attention_flops(found.schedule, **sizes)
    assert counts[ATTEND] == attention
    products = sum(count for operator, count in counts.items() if operator in PRODUCTS)
    # transformers 5.17 makes RoPE's angles by a matrix product, T x D/2 for each base; 5.23 does not.
    angles = TOKENS * found.head_dim // 2
    assert products - attention - TOKENS * sum(found.token_flops().values()) in (0, angles, 2 * angles)


def test_matrix_flops_of_a_llama_are_the_textbook_s() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 3, "vocab_size": 11}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=2)
    assert matrix_flops(config, "it") == {"projections": 3 * (2 * 8 * 8 + 2 * 8 * 4), "mlp": 3 * 3 * 8 * 20, "head": 88}


def test_matrix_flops_count_a_token_s_experts_only() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 1, "vocab_size": 11}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=4, num_local_experts=5, num_experts_per_tok=2)
    assert matrix_flops(config, "it")["mlp"] == 8 * 5 + 2 * 3 * 8 * 20
