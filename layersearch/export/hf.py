"""Export to Hugging Face transformers, as a stock family or with a modeling file, and to FlexAttention.

The modeling file and the module for FlexAttention do not need layersearch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pprint
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export.families import FAMILIES, Family
from layersearch.export.files import write_files
from layersearch.export.weights import save_weights as save_weights  # also for those that import it from here
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def config_text(schedule: Schedule, family: Family, model: ModelConfig, vocab_size: int, seq_len: int) -> str:
    """Return the ``config.json`` of a stock family, after transformers built its model from it."""
    family.capabilities.check(schedule, seq_len=seq_len, n_heads=model.n_heads)
    if not family.gqa and model.n_kv_heads != model.n_heads:
        other = next(one.name for one in FAMILIES.values() if one.gqa)
        raise ExportError(
            f"n_kv_heads: family {family.name} has one key-value head per query head, the model {model.n_kv_heads} for "
            f"{model.n_heads}; give --family {other}, or a --recipe with n_kv_heads: {model.n_heads}"
        )
    fields = size_fields(model, vocab_size, seq_len)
    rope = fields.pop("rope_parameters")
    if family.rope == "one":
        fields["rope_parameters"] = rope
    elif family.rope == "by_type":
        fields["rope_parameters"] = {word: dict(rope) for word in family.layer_types.values()}
    elif family.rope == "yarn":
        unscaled = {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": seq_len}
        fields["rope_parameters"] = rope | unscaled | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    fields |= {name: fields[source] for name, source in family.copies.items()}
    fields |= {name: [value] * model.n_layers for name, value in family.per_layer.items()}
    fields |= {**family.constants, **schedule_fields(schedule, family, seq_len), "architectures": [family.architecture]}
    undeclared = {name: fields[name] for name in family.undeclared if model.head_dim * model.n_heads != model.d_model}
    where = f"family {family.name} at this size"
    return family.build(known_fields(family.config_class, fields) | undeclared, where).to_json_string()


def known_fields(config_class: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a configuration class of transformers has; it would store the others unread."""
    known = {entry.name for entry in dataclasses.fields(config_class)} | {"architectures"}
    return {name: value for name, value in fields.items() if name in known}


def size_fields(model: ModelConfig, vocab_size: int, seq_len: int) -> dict[str, Any]:
    """Return a model's size under the names that configuration classes of transformers use for it."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "attention_scale": model.head_dim**-0.5,
        "max_position_embeddings": seq_len,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        # A family's own special tokens mean nothing in another vocabulary: its eos would end texts at random.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def schedule_fields(schedule: Schedule, family: Family, seq_len: int) -> dict[str, Any]:
    """Return the configuration fields of a schedule; ``seq_len`` tokens is for a required size that no layer uses."""
    words = [family.layer_types[span.kind] for span in schedule]
    runs = [[[word], len(list(run))] for word, run in itertools.groupby(words)]
    fields: dict[str, Any] = {name: words if form == "list" else runs for name, form in family.layer_fields.items()}
    size = next((span.size for span in schedule if span.size is not None), None)
    unused = seq_len if family.size_required else None
    for name, factor in family.size_fields.items():
        value = unused if size is None else size
        fields[name] = None if value is None else value * factor
    return fields | dict(family.sparse_flags if size is not None else {})


MODELING, FLEX = "modeling_layersearch.py", "flex_layersearch.py"
"""The code that is exported; the modeling file is copied unchanged."""


def _code(name: str) -> str:
    return resources.files("layersearch.export.remote").joinpath(name).read_text(encoding="utf-8")


def flex_module(schedule: Schedule, n_heads: int) -> str:
    """Return the code of FlexAttention's module: its two constants hold the schedule and the number of query heads."""
    for layer, span in enumerate(schedule):
        if span.summary:
            raise ExportError(
                f"layer {layer}: {span}: --to flex has no summaries: they are made of a layer's inputs, which no mask "
                "gets; give --to hf-remote, yaml or json"
            )
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
    from layersearch.export.remote.modeling_layersearch import BASES, NAME, SUMMARY_BASES, config_class

    values = copy.deepcopy(config.to_dict())
    base = values.pop("base_model_type", None) or values["model_type"]
    if base not in BASES:
        raise ExportError(f"--to hf-remote does not support {base!r}; known: {', '.join(BASES)}")
    for layer, span in enumerate(schedule):
        if span.summary and base not in SUMMARY_BASES:
            raise ExportError(
                f"layer {layer}: {span}: --to hf-remote has summaries for {' and '.join(SUMMARY_BASES)}, whose layers "
                f"define them, not for {base!r}; drop '+summary:{span.summary}', or give --to yaml or json"
            )
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
    model: PreTrainedModel,
    schedule: Schedule,
    *,
    out: Path,
    evidence: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a stock model's weights with a schedule, as a folder that loads with ``trust_remote_code=True``.

    ``weights`` are the model's, by name, where it holds only a shard of them.

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
    held = dict(weights) if weights else model.state_dict()
    shell.to(next(value.dtype for value in held.values() if value.is_floating_point()))  # its configuration names it
    shell.save_pretrained(out, state_dict=held)
    return [*paths, *sorted(out.glob("*.safetensors*"))]
