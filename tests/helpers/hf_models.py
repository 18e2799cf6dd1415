"""Tiny models of each Hugging Face family that can be converted, with strong random weights, saved as real folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 61
LAYERS = 3
_SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_FULL = ["full_attention"] * LAYERS
_GQA = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GQA),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", {**_GQA, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_GQA, "sliding_window": None}),
    "ministral": (
        "MinistralConfig",
        {**_GQA, "head_dim": 8, "sliding_window": 64, "layer_types": _FULL},
    ),
    "gemma": ("GemmaConfig", {**_GQA, "head_dim": 16}),
    "gpt2": ("GPT2Config", {**_SIZE, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("GPTNeoXConfig", {**_SIZE, "intermediate_size": 48}),
    "smollm3": ("SmolLM3Config", {**_GQA, "no_rope_layer_interval": 2}),
    "olmo": ("OlmoConfig", {**_GQA, "clip_qkv": 2.0}),
}
_EXPERTS = {**_GQA, "num_experts_per_tok": 2}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", {**_GQA, "head_dim": 8, "attn_logit_softcapping": 2.0, "sliding_window": 64}),
    "gemma3_text": ("Gemma3TextConfig", {**_GQA, "head_dim": 16, "sliding_window": 64}),
    "gpt_oss": ("GptOssConfig", {**_EXPERTS, "head_dim": 8, "num_local_experts": 4, "sliding_window": 64}),
    "mixtral": ("MixtralConfig", {**_EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_experts": 4},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_EXPERTS, "head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4}),
    "olmoe": ("OlmoeConfig", {**_EXPERTS, "num_experts": 4}),
}
"""Families that run and that no export holds: softcapping, learned sinks, mixtures of experts."""
EAGER = ("gemma2", "gpt_oss")
"""Families whose attention transformers runs in full only by its ``eager`` implementation."""


def make(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """Return a model whose every weight is strong enough to show."""
    name, values = (FAMILIES | FURTHER)[family]
    config = getattr(transformers, name)(**{**values, **changes})
    config._experts_implementation = "eager"  # the default has no float64
    torch.manual_seed(seed)
    kind = "eager" if family in EAGER else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=kind, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model.eval()


def save(family: str, folder: Path, **changes: Any) -> Path:
    """Save such a model as a user has it."""
    make(family, **changes).save_pretrained(folder)
    return folder
