"""Exports with code of their own, which does not need layersearch: for transformers, and for FlexAttention."""

from __future__ import annotations

import copy
import pprint
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import ModelConfig
from layersearch.errors import ExportError
from layersearch.export.files import write_files
from layersearch.export.hf import known_fields, size_fields
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MODELING, FLEX = "modeling_layersearch.py", "flex_layersearch.py"
"""The code that is exported; the modeling file is copied unchanged."""


def _code(name: str) -> str:
    return resources.files("layersearch.export.remote").joinpath(name).read_text(encoding="utf-8")


def flex_module(schedule: Schedule, n_heads: int) -> str:
    """Return the code of FlexAttention's module: its two constants hold the schedule and the number of query heads."""
    code, spans = _code(FLEX), pprint.pformat(schedule.to_dicts(), width=110, sort_dicts=False)
    for line, value in (("N_HEADS = 1\n", n_heads), ('SPANS: list[dict[str, Any]] = [{"kind": "full"}]\n', spans)):
        assert code.count(line) == 1
        code = code.replace(line, f"{line.partition(' = ')[0]} = {value}\n")
    return code


def remote_files(schedule: Schedule, config: PreTrainedConfig) -> dict[str, str]:
    """Return ``config.json`` and the modeling file by name; the stock model's weights load beside them."""
    return {"config.json": remote_config(schedule, config).to_json_string(), MODELING: _code(MODELING)}


def remote_config(schedule: Schedule, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a stock model's configuration as the modeling file reads it; the schedule replaces its own windows.

    Raises:
        ExportError: if the modeling file does not support the model, or the number of layers differs.
    """
    from layersearch.export.remote.modeling_layersearch import BASES, NAME, config_class

    values = copy.deepcopy(config.to_dict())
    base = values.pop("base_model_type", None) or values["model_type"]
    if base not in BASES:
        raise ExportError(f"--to hf-remote does not support {base!r}; known: {', '.join(BASES)}")
    if len(schedule) != config.num_hidden_layers:
        raise ExportError(f"the schedule has {len(schedule)} layers, the model {config.num_hidden_layers}")
    schedule.check(seq_len=config.max_position_embeddings, n_heads=config.num_attention_heads)
    # Every layer of the stock model becomes a full one; the modeling file narrows them.
    if values.get("layer_types") is not None:
        values["layer_types"] = ["full_attention"] * len(schedule)
    if "use_sliding_window" in values:
        values["use_sliding_window"] = False
    if "sliding_window" in values:
        # Ministral requires a number, although no layer uses it.
        values["sliding_window"] = values["max_position_embeddings"] if base == "ministral" else None
    module = config_class.__module__.rpartition(".")[2]
    values |= {
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


def stock_config(model: ModelConfig, vocab_size: int, seq_len: int) -> PreTrainedConfig:
    """Return the stock configuration of a recipe's model: Llama, or Qwen3 if queries and keys are normalized."""
    import transformers

    kind = transformers.Qwen3Config if model.qk_norm else transformers.LlamaConfig
    return kind(**known_fields(kind, size_fields(model, vocab_size, seq_len)))


def save_remote(
    model: PreTrainedModel, schedule: Schedule, *, out: Path, evidence: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a stock model's weights with a schedule, as a folder that loads with ``trust_remote_code=True``.

    Raises:
        ExportError: as `remote_config`, or if the folder holds weights or other files of the same names.
    """
    from layersearch.export.remote.modeling_layersearch import LayersearchForCausalLM

    if list(out.glob("*.safetensors*")):
        raise ExportError(f"{out} holds weights already; give --out another folder or remove them")
    paths = write_files(out, remote_files(schedule, model.config), schedule, evidence)
    import torch

    with torch.device("meta"):
        shell = LayersearchForCausalLM(remote_config(schedule, model.config))
    shell.generation_config = model.generation_config
    shell.save_pretrained(out, state_dict=model.state_dict())
    return [*paths, *sorted(out.glob("*.safetensors*"))]
