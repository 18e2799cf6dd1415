"""Export to LitGPT: its model's configuration with the schedule, and a model's weights under its names.

Read from, and executed in, LitGPT 0.5.13 on a CPU. ``sliding_window_size`` counts the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.errors import ExportError
from layersearch.export.families import LLAMA_SHAPED
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "model_config.yaml", "lit_model.pth"
"""The two files of a checkpoint."""
MODEL_TYPES = (*LLAMA_SHAPED, "qwen2", "qwen3")
"""transformers' model types that its GPT computes, all layers with RoPE."""
_TOP = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    "self_attn.o_proj": "attn.proj",
    "self_attn.q_norm": "attn.norm_q",
    "self_attn.k_norm": "attn.norm_k",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
}
_LLAMA3 = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}


def litgpt_config(schedule: Schedule, values: Mapping[str, Any], name: str = "layersearch") -> dict[str, Any]:
    """Return the arguments of ``litgpt.Config``; the schedule has one window size, or none.

    Args:
        schedule: one span per layer.
        values: a ``config.json`` of one of `MODEL_TYPES`.
        name: of the model; LitGPT chooses the style of prompts by it.

    Raises:
        ExportError: if LitGPT's model computes something else; names the key.
    """
    kind = values["model_type"]
    if kind not in MODEL_TYPES:
        raise ExportError(
            f"--to litgpt takes a model of type {', '.join(MODEL_TYPES)}, not {kind!r}; give --to hf or hf-remote"
        )
    usual = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    if (other := next((key for key in usual if values.get(key, usual[key]) != usual[key]), None)) is not None:
        raise ExportError(f"{other} is {values[other]!r}, which LitGPT's model has not; give --to hf or hf-remote")
    heads = values["num_attention_heads"]
    config: dict[str, Any] = {
        "name": name,
        "block_size": values["max_position_embeddings"],
        "n_layer": values["num_hidden_layers"],
        "n_embd": values["hidden_size"],
        "vocab_size": values["vocab_size"],
        "padded_vocab_size": values["vocab_size"],
        "norm_class_name": "RMSNorm",
        "norm_eps": values["rms_norm_eps"],
        "norm_qk": kind == "qwen3",
        "parallel_residual": False,
        "n_head": heads,
        "head_size": values.get("head_dim") or values["hidden_size"] // heads,
        "n_query_groups": values.get("num_key_value_heads") or heads,
        **_rope(values.get("rope_parameters") or {"rope_theta": values.get("rope_theta", 10_000.0)}),
        "rotary_percentage": 1.0,
        "intermediate_size": values["intermediate_size"],
        "bias": False,
        "attn_bias": kind == "qwen2",
        "mlp_class_name": "LLaMAMLP",
    }
    size = next((span.size for span in schedule if not span.is_full), None)
    if size is not None:
        config |= {
            "sliding_window_size": size,
            "sliding_window_indices": [0 if span.is_full else 1 for span in schedule],
        }
    return config


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    base, kind = rope["rope_theta"], rope.get("rope_type", "default")
    if base != int(base):
        raise ExportError(f"LitGPT's rope_base is an integer, not {base}; set model.rope_theta (rope_theta) to one")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ExportError("partial_rotary_factor: --to litgpt rotates whole heads; give --to hf or hf-remote")
    found: dict[str, Any] = {"rope_base": int(base)}
    if kind == "linear":
        found["rope_adjustments"] = {"factor": rope["factor"]}
    elif kind == "llama3":
        found["rope_adjustments"] = {name: rope[key] for name, key in _LLAMA3.items()} | {
            "original_max_seq_len": rope["original_max_position_embeddings"]
        }
    elif kind != "default":
        raise ExportError(f"rope_type {kind!r} was not compared with LitGPT's; give --to hf or hf-remote")
    return found


def litgpt_tensors(tensors: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Return a model's weights under LitGPT's names, by their names in transformers' Llama.

    Queries, keys and values become one matrix; a tied output layer becomes a tensor of its own, which LitGPT's has.
    """
    import torch

    left = dict(tensors)
    left.setdefault("lm_head.weight", left["model.embed_tokens.weight"])
    found = {new: left.pop(old) for old, new in _TOP.items()}
    for layer in range(n_layers):
        here, there = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for part in ("weight", "bias"):
            names = [f"{here}self_attn.{letter}_proj.{part}" for letter in "qkv"]
            if names[0] in left:
                found[f"{there}attn.qkv.{part}"] = torch.cat([left.pop(name) for name in names])
        for old, new in _LAYER.items():
            if (name := f"{here}{old}.weight") in left:
                found[f"{there}{new}.weight"] = left.pop(name)
    if left:
        raise ExportError(f"--to litgpt: LitGPT's model has no place for {next(iter(left))}; give --to hf or hf-remote")
    return found


def save_litgpt(tensors: Mapping[str, Tensor], n_layers: int, folder: Path) -> None:
    """Write ``lit_model.pth``, as LitGPT's own checkpoints are."""
    import torch

    torch.save(
        {name: value.contiguous() for name, value in litgpt_tensors(tensors, n_layers).items()}, folder / WEIGHTS
    )
