"""Export to transformers with a modelling file of our own: a folder that runs any schedule and needs no layersearch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import ModelConfig
from layersearch.errors import UserError
from layersearch.export.files import write_schedule, write_text
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MODELING = "modeling_layersearch.py"
"""The modelling file, copied as it is."""


def write_remote(
    schedule: Schedule, *, config: PreTrainedConfig, out: Path, evidence: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write the configuration, the modelling file and the schedule; weights of the stock model load beside them.

    Args:
        schedule: one span per layer of the model.
        config: the stock model's configuration. Windows of its own are switched off: the schedule says them all.
        out: the folder.
        evidence: what supports the schedule, kept in ``schedule.yaml``.

    Returns:
        The files written: ``config.json``, the modelling file, ``schedule.yaml``.

    Raises:
        UserError: if the model's attention cannot be routed, the schedule does not fit it, or other files of the same
            names stand there.
    """
    text = remote_config(schedule, config).to_json_string()
    code = resources.files("layersearch.export.remote").joinpath(MODELING).read_text(encoding="utf-8")
    paths = [write_text(out / "config.json", text), write_text(out / MODELING, code)]
    return [*paths, write_schedule(schedule, "yaml", out, evidence or {})]


def remote_config(schedule: Schedule, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration that the modelling file reads.

    Raises:
        UserError: as `write_remote`.
    """
    from layersearch.export.remote.modeling_layersearch import BASES, NAME, config_class

    values = copy.deepcopy(config.to_dict())
    base = values.pop("base_model_type", None) or values["model_type"]
    if base not in BASES:
        raise UserError(f"--to hf-remote cannot route the attention of {base!r}; known: {', '.join(BASES)}")
    if len(schedule) != config.num_hidden_layers:
        raise UserError(f"the schedule has {len(schedule)} layers, the model {config.num_hidden_layers}")
    schedule.check(seq_len=config.max_position_embeddings, n_heads=config.num_attention_heads)
    module = config_class.__module__.rpartition(".")[2]
    values |= _no_own_windows(values, base) | {
        "model_type": "layersearch",
        "base_model_type": base,
        "layer_spans": schedule.to_dicts(),
        "architectures": ["LayersearchForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.LayersearchConfig",
            "AutoModelForCausalLM": f"{module}.LayersearchForCausalLM",
        },
    }
    made = config_class(base).from_dict(values)
    made._attn_implementation = NAME
    return made


def _no_own_windows(values: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Return the fields that make every layer of the stock model a full one; the modelling file narrows them."""
    fields: dict[str, Any] = {}
    if values.get("layer_types") is not None:
        fields["layer_types"] = ["full_attention"] * len(values["layer_types"])
    if "use_sliding_window" in values:
        fields["use_sliding_window"] = False
    if "sliding_window" in values:
        # Ministral wants a number, which then no layer uses.
        fields["sliding_window"] = values["max_position_embeddings"] if base == "ministral" else None
    return fields


def stock_config(model: ModelConfig, *, vocab_size: int, seq_len: int) -> PreTrainedConfig:
    """Return the stock configuration of a recipe's model: Llama, or Qwen3 where queries and keys are normalised."""
    import transformers

    kind = transformers.Qwen3Config if model.qk_norm else transformers.LlamaConfig
    return kind(
        vocab_size=vocab_size,
        hidden_size=model.d_model,
        intermediate_size=model.d_ff,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=seq_len,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def save_remote(
    model: PreTrainedModel, schedule: Schedule, *, out: Path, evidence: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a stock model's weights with a schedule, as a folder that loads with ``trust_remote_code=True``.

    Args:
        model: a stock causal language model.
        schedule: one span per layer of it.
        out: the folder.
        evidence: what supports the schedule.

    Raises:
        UserError: as `write_remote`, or if weights stand there already.
    """
    from layersearch.export.remote.modeling_layersearch import LayersearchForCausalLM

    if list(out.glob("*.safetensors*")):
        raise UserError(f"{out} holds weights already; give --out another folder or remove them")
    paths = write_remote(schedule, config=model.config, out=out, evidence=evidence)
    import torch

    with torch.device("meta"):
        shell = LayersearchForCausalLM(remote_config(schedule, model.config))
    shell.generation_config = model.generation_config
    shell.save_pretrained(out, state_dict=model.state_dict())
    return [*paths, *sorted(out.glob("*.safetensors*"))]
