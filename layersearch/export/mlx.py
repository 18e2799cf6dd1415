"""Export to MLX-LM: a folder whose ``config.json`` has the keys that its models read.

Read from, and executed in, MLX-LM 0.32.2 on a CPU. It reads the base of RoPE at the top level; transformers writes it
inside ``rope_parameters``. Without it MLX-LM takes 10,000 silently. A window counts the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layersearch.errors import ExportError
from layersearch.export.capabilities import Capabilities
from layersearch.export.families import LLAMA_SHAPED
from layersearch.export.source import check_yarn
from layersearch.schedule import Schedule

RELEASE = "MLX-LM 0.32.2"
CAPABILITIES = Capabilities(name=RELEASE)
BY_LAYER = (*LLAMA_SHAPED, "smollm3", "olmo3", "ministral3")
"""Model types whose code reads ``layer_types``."""
BY_PATTERN = ("exaone4", "gemma3_text")
"""Model types whose code reads ``sliding_window_pattern``: a letter per layer, or a period."""
DEAF = ("qwen2", "qwen3", "gemma2", "cohere2")
"""Model types that it runs with other layers than the configuration says."""
NEEDS_BOTH = ("olmo3", "exaone4")
"""Model types that do not load without a full layer and a window."""


def check_mlx(schedule: Schedule, model_type: str, *, seq_len: int, n_heads: int) -> None:
    """Refuse a schedule that MLX-LM does not run in models of this type; sizes are as in `Capabilities.check`.

    Raises:
        ExportError: names the reason and the remedy.
    """
    CAPABILITIES.check(schedule, seq_len=seq_len, n_heads=n_heads)
    if model_type in DEAF:
        raise ExportError(
            f"{RELEASE} runs a {model_type} with layers of its own, whatever its config.json says; "
            "give a model of type llama, mistral, ministral3, smollm3, olmo3 or exaone4"
        )
    if model_type not in BY_LAYER + BY_PATTERN:
        raise ExportError(
            f"{RELEASE} does not run a schedule in a model of type {model_type!r}; give one of type "
            f"{', '.join(BY_LAYER + BY_PATTERN)}"
        )
    full = [span.is_full for span in schedule]
    if not any(full):
        raise ExportError(f"{RELEASE} does not load a {model_type} without a full layer; make one layer full")
    if all(full) and model_type in NEEDS_BOTH:
        raise ExportError(f"{RELEASE} does not load a {model_type} without a window; give one layer a window")
    if model_type == "gemma3_text":
        _period(schedule)


def mlx_config(schedule: Schedule, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's ``config.json`` as MLX-LM reads it, with the schedule in it; `check_mlx` came before.

    Args:
        schedule: one span per layer.
        values: the model's ``config.json`` as transformers writes it, without a ``text_config``.
    """
    model_type = str(values["model_type"])
    size = next((span.size for span in schedule if span.size is not None), None)
    layers = ["full_attention" if span.is_full else "sliding_attention" for span in schedule]
    new = {**values, "layer_types": layers, "sliding_window": size}
    if model_type in LLAMA_SHAPED:
        # Its Llama obeys layer_types; it has no Ministral, which holds the same weights.
        new |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    rope = values.get("rope_parameters") or {}
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
    check_yarn(full, RELEASE)
    theta = full.get("rope_theta", values.get("rope_theta"))
    if theta is not None:
        new["rope_theta"] = float(theta)
    scaled = full.get("rope_type", "default") != "default"
    new["rope_scaling"] = {key: value for key, value in full.items() if key != "rope_theta"} if scaled else None
    if model_type == "exaone4":
        new["sliding_window_pattern"] = "".join("G" if span.is_full else "L" for span in schedule)
        new["head_dim"] = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    elif model_type == "gemma3_text":
        new |= {"sliding_window_pattern": _period(schedule), "rope_local_base_freq": float(sliding["rope_theta"])}
    elif model_type == "ministral3":
        positions = full.get("original_max_position_embeddings") or values["max_position_embeddings"]
        beta = full.get("llama_4_scaling_beta") or 0.0
        new["rope_parameters"] = {
            **full,
            "llama_4_scaling_beta": beta,
            "original_max_position_embeddings": positions,
        }
    return new


def _period(schedule: Schedule) -> int:
    """Return the period of Gemma 3's pattern, whose last layer is full; 1 means all-full."""
    for period in range(1, len(schedule) + 1):
        if all(span.is_full == (layer % period == period - 1) for layer, span in enumerate(schedule)):
            return period
    raise ExportError(
        f"{RELEASE} runs a gemma3 with a full layer at the end of every period only, as in "
        f"'window:W*5 full window:W*5 full'; {schedule} has no such period"
    )
