"""Export to training and serving engines: flags, overrides or arguments, with each engine's own window size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from layersearch.config.recipe import ModelConfig
from layersearch.errors import ExportError
from layersearch.export.engines import ENGINES, SERVING_FAMILIES, ServingFamily, serving_family
from layersearch.schedule import Schedule


def engine_text(
    schedule: Schedule, target: str, family: str | None, model: ModelConfig, vocab_size: int, seq_len: int
) -> str:
    """Return the file that an engine reads; its head names the release that was read and how the file is used."""
    engine, sources = ENGINES[target], ENGINES[target].sources
    engine.capabilities.check(schedule, seq_len=seq_len, n_heads=model.n_heads)
    serving = serving_family(target, family, schedule) if target in SERVING_FAMILIES else None
    min_window = engine.min_window + (serving.extra_keys if serving else 0)
    for layer, span in enumerate(schedule):
        if span.size is not None and span.size < min_window:
            raise ExportError(
                f"layer {layer}: {span}: {engine.name} reads so narrow a window as none; "
                f"give window:{min_window} or more"
            )
    if serving is not None:
        sources = (serving.source, *sources)
        body = _overrides(schedule, target, serving)
    elif target == "megatron":
        body = _megatron(schedule)
    elif target == "litgpt":
        body = _litgpt(schedule, model, vocab_size, seq_len)
    elif target == "tensorrt-llm":
        sizes = [span.size or seq_len for span in schedule]
        body = _yaml({"kv_cache_config": {"max_attention_window": sizes, "enable_block_reuse": False}})
    elif target == "torchtitan":
        body = TORCHTITAN.format(lefts=[-1 if span.size is None else span.size - 1 for span in schedule])
    else:
        pairs = [(-1, -1) if span.size is None else (span.size - 1, 0) for span in schedule]
        body = f"WINDOW_SIZES = {pairs}\n"
    head = (schedule, f"for {engine.name}, read from {'; '.join(sources)}", engine.convention, engine.usage)
    return "".join(f"# {line}\n" for line in head) + body


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100)


def _window(schedule: Schedule) -> int | None:
    """Return the one size of all windows; None if there is no window."""
    return next((span.size for span in schedule if not span.is_full), None)


def _megatron(schedule: Schedule) -> str:
    size = _window(schedule)
    if size is None:
        return "# no window: nothing to set\n"
    pattern = ",".join("0" if span.is_full else "1" for span in schedule)
    return f"--window-size {size - 1},0\n--window-attn-skip-freq [{pattern}]\n"


def _overrides(schedule: Schedule, target: str, serving: ServingFamily) -> str:
    """Return a serving engine's configuration file, which overrides fields of the served model's ``config.json``."""
    size = _window(schedule)
    layers = ["full_attention" if span.is_full else "sliding_attention" for span in schedule]
    changed: dict[str, Any] = {"layer_types": layers}
    if size is not None:
        changed |= {"sliding_window": size - serving.extra_keys, **serving.fields}
    values: dict[str, Any] = {"hf-overrides" if target == "vllm" else "json-model-override-args": changed}
    return _yaml(values | ({"model-impl": serving.impl} if serving.impl else {}))


def _litgpt(schedule: Schedule, model: ModelConfig, vocab_size: int, seq_len: int) -> str:
    if model.rope_theta != int(model.rope_theta):
        raise ExportError(f"LitGPT's rope_base is an integer, not {model.rope_theta}; set model.rope_theta to one")
    config: dict[str, Any] = {
        "name": "layersearch",
        "block_size": seq_len,
        "n_layer": model.n_layers,
        "n_embd": model.d_model,
        "vocab_size": vocab_size,
        "padded_vocab_size": vocab_size,
        "norm_class_name": "RMSNorm",
        "norm_eps": 1e-6,
        "norm_qk": model.qk_norm,
        "parallel_residual": False,
        "n_head": model.n_heads,
        "head_size": model.head_dim,
        "n_query_groups": model.n_kv_heads,
        "rope_base": int(model.rope_theta),
        "rotary_percentage": 1.0,
        "intermediate_size": model.d_ff,
        "bias": False,
        "mlp_class_name": "LLaMAMLP",
    }
    size = _window(schedule)
    if size is not None:
        config |= {
            "sliding_window_size": size,
            "sliding_window_indices": [0 if span.is_full else 1 for span in schedule],
        }
    return _yaml(config)


TORCHTITAN = '''import dataclasses

LEFT = {lefts}
"""Keys before the token that each layer sees; -1: all."""


def with_windows(config):
    """Return a torchtitan model configuration (llama3, qwen3) whose layers have these windows."""
    if len(config.layers) != len(LEFT):
        raise ValueError(f"{{len(config.layers)}} layers in the model, {{len(LEFT)}} in the schedule")
    layers = []
    for layer, left in zip(config.layers, LEFT, strict=True):
        inner = layer.attention.inner_attention
        if not hasattr(inner, "window_size"):
            raise ValueError(f"{{type(inner).__qualname__}} has no window: build the model with attn_backend='varlen'")
        inner = dataclasses.replace(inner, window_size=(left, 0))
        attention = dataclasses.replace(layer.attention, inner_attention=inner)
        layers.append(dataclasses.replace(layer, attention=attention))
    return dataclasses.replace(config, layers=layers)
'''
