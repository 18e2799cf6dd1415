"""How training and serving engines define a window, read from one release of each.

Every fact stands beside the file it was read from. ``W`` is the size of a `Span`: keys, the token itself included.
``executed`` says what ran: a CPU build of the engine, on models with these files. The others were read, not run, and
nothing ran on a GPU. `analysis/engines` says which engines' own code read the exported files.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, did_you_mean
from layersearch.export.capabilities import Capabilities
from layersearch.export.hf import size_fields
from layersearch.export.litgpt import CONFIG as LITGPT_CONFIG
from layersearch.export.litgpt import litgpt_config
from layersearch.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's release."""

    title: str
    release: str
    sources: tuple[str, ...]
    """Files of that release with these facts."""
    convention: str
    """How it counts the window's size."""
    file: str
    usage: str
    size_per_layer: bool = False
    """Whether layers may differ in window size."""
    min_window: int = 1
    """Smallest window in keys; a smaller one is read as none."""
    executed: str | None = None
    """The build that ran models with these files; None: the engine was read, not run."""

    @property
    def evidence(self) -> str:
        """How far the file is known to hold."""
        return f"executed in {self.executed}" if self.executed else "read, not run"

    @property
    def name(self) -> str:
        """Title and release, for errors."""
        return f"{self.title} {self.release}"

    @property
    def capabilities(self) -> Capabilities:
        """Which spans it supports."""
        return Capabilities(name=self.name, size_per_layer=self.size_per_layer)


ENGINES: dict[str, Engine] = {
    "megatron": Engine(
        title="Megatron-core",
        release="0.19.2",
        sources=(
            "megatron/training/arguments.py (tuple_type, moe_freq_type)",
            "megatron/core/transformer/utils.py (get_sliding_window_causal_mask, is_layer_window_attention)",
        ),
        convention="--window-size LEFT,0 sees LEFT keys before the token and the token: LEFT = W-1; in "
        "--window-attn-skip-freq 1 is a window, 0 is full",
        file="megatron.args",
        usage="torchrun ... pretrain_gpt.py $(grep -v '^#' megatron.args) ...",
    ),
    "vllm": Engine(
        title="vLLM",
        release="0.33.0",
        sources=(
            "vllm/v1/attention/backends/flash_attn.py (sliding_window - 1, 0)",
            "vllm/engine/arg_utils.py (layer_types)",
            "vllm/utils/argparse_utils.py (load_config_file)",
        ),
        convention="sliding_window counts the token itself: W",
        file="vllm.yaml",
        usage="vllm serve MODEL --config vllm.yaml",
        executed="vLLM 0.32.0 on a CPU, for llama, mistral, ministral, smollm3, qwen2, qwen3, olmo3, gemma2, gemma3, "
        "exaone4, granite_swa, cohere2 and gpt_oss",
    ),
    "sglang": Engine(
        title="SGLang",
        release="0.5.23",
        sources=(
            "python/sglang/srt/layers/radix_attention.py (a window of 0 further keys is read as none)",
            "python/sglang/srt/layers/attention/triton_backend.py (update_sliding_window_buffer)",
            "python/sglang/srt/utils/server_args_config_parser.py",
        ),
        convention="sliding_window counts the token itself: W; the model code subtracts 1. Its Triton backend decodes "
        "gemma3, olmo3 and gpt_oss with one key less: give --attention-backend fa3",
        file="sglang.yaml",
        usage="python -m sglang.launch_server --model-path MODEL --config sglang.yaml",
        min_window=2,
    ),
    "tensorrt-llm": Engine(
        title="TensorRT-LLM",
        release="at commit 00679c66c3e3",
        sources=(
            "docs/source/legacy/tensorrt-backend-removal.md (PyTorch is the only backend)",
            "tensorrt_llm/llmapi/llm_args.py (model_kwargs, KvCacheConfig.max_attention_window)",
            "tensorrt_llm/_torch/pyexecutor/config_utils.py (get_layer_attention_window: one size)",
        ),
        convention="sliding_window counts the token itself: W; max_attention_window is what the cache keeps of each "
        "layer: W, or the longest text",
        file="tensorrt_llm.yaml",
        usage="trtllm-serve MODEL --extra_llm_api_options tensorrt_llm.yaml   # it passes over keys that MODEL's "
        "configuration class lacks",
    ),
    "litgpt": Engine(
        title="LitGPT",
        release="0.5.13",
        sources=("litgpt/config.py (sliding_window_size, sliding_window_indices)", "litgpt/model.py"),
        convention="sliding_window_size counts the token itself: W; in sliding_window_indices 1 is a window, 0 is "
        "full. With a KV cache, LitGPT refuses a prompt longer than W: give it the rest token by token",
        file=LITGPT_CONFIG,
        usage="litgpt generate DIR, where --model gave weights; without, litgpt.Config.from_file('model_config.yaml')",
        executed="LitGPT 0.5.13 on a CPU",
    ),
    "torchtitan": Engine(
        title="torchtitan",
        release="0.3.0",
        sources=(
            "torchtitan/models/common/attention.py (VarlenAttention.Config.window_size)",
            "torchtitan/models/gpt_oss/__init__.py (sliding_window_size - 1, 0)",
        ),
        convention="window_size=(LEFT, 0) sees LEFT keys before the token and the token: LEFT = W-1",
        file="torchtitan_windows.py",
        usage="from torchtitan_windows import with_windows; "
        "config = with_windows(config)   # in a config function; attn_backend='varlen'",
        size_per_layer=True,
    ),
    "flash-attn": Engine(
        title="flash-attn",
        release="2.8.3.post2",
        sources=(
            "flash_attn/flash_attn_interface.py (flash_attn_func)",
            "tests/test_flash_attn.py (construct_local_mask)",
        ),
        convention="window_size=(LEFT, 0) sees LEFT keys before the token and the token: LEFT = W-1",
        file="flash_attn_windows.py",
        usage="flash_attn_func(q, k, v, causal=True, window_size=WINDOW_SIZES[layer])",
        size_per_layer=True,
    ),
}
"""Every engine by its name for ``--to``."""


@dataclass(frozen=True, kw_only=True)
class ServingFamily:
    """How a serving engine reads one Hugging Face family's configuration."""

    source: str
    """The file of the release with these facts."""
    extra_keys: int = 0
    """Keys that its code sees beyond ``sliding_window``; a ``sliding_window`` of 0 is read as none."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields without which the engine ignores the family's windows."""
    impl: str | None = None
    """``--model-impl``, if the engine has no code of its own for the family."""
    fixed_pattern: tuple[str, ...] | None = None
    """Hard-coded span kinds, repeated over the layers; None: it reads ``layer_types``."""
    unsupported: str | None = None
    """Why no schedule with windows works, and the remedy; None: such schedules work."""
    starts: bool = True
    """Whether it starts; if not, ``unsupported`` holds for all-full schedules too."""


_EVEN = ("window", "full")
_BY_TRANSFORMERS = ServingFamily(
    source="vllm/model_executor/models/transformers/base.py (layer_types)", impl="transformers"
)
_WITH_FLAG = dataclasses.replace(_BY_TRANSFORMERS, fields={"use_sliding_window": True})
_VLLM_NONE = ServingFamily(
    source="vllm/model_executor/models/registry.py",
    unsupported="does not start a {family} of a recipe's size; give --family llama or granite_swa",
    starts=False,
)
_SGLANG_FULL = ServingFamily(
    source="python/sglang/srt/models",
    unsupported="runs {family} all-full whatever layer_types says: give --family gemma3, olmo3, granite_swa or gpt_oss",
)

_SGLANG_WIDE = ServingFamily(
    source="python/sglang/srt/models/transformers.py",
    unsupported="runs {family} by its transformers backend, with one key more in each window: give --family gemma3, "
    "olmo3, granite_swa or gpt_oss",
)
_TENSORRT_NONE = ServingFamily(
    source="tensorrt_llm/_torch/models/_arch_index.py",
    unsupported="has no code for {family}; give --family gemma3 or cohere2",
    starts=False,
)

_OVERRIDES = {"vllm": "hf-overrides", "sglang": "json-model-override-args", "tensorrt-llm": "model_kwargs"}
SERVING_FAMILIES: dict[str, dict[str, ServingFamily]] = {
    "vllm": {
        "llama": ServingFamily(source="vllm/model_executor/models/llama.py"),
        "mistral": ServingFamily(source="vllm/model_executor/models/mistral.py (as llama.py)"),
        "ministral": _BY_TRANSFORMERS,
        "smollm3": _WITH_FLAG,
        **dict.fromkeys(("qwen2", "qwen3"), _WITH_FLAG),  # its own code for them passes over layer_types
        "olmo3": _BY_TRANSFORMERS,
        "gemma2": ServingFamily(source="vllm/model_executor/models/gemma2.py"),
        "gemma3": ServingFamily(source="vllm/model_executor/models/gemma3.py"),
        "exaone4": ServingFamily(source="vllm/model_executor/models/exaone4.py"),
        "granite_swa": ServingFamily(source="vllm/model_executor/models/granite.py"),
        "cohere2": ServingFamily(source="vllm/model_executor/models/commandr.py (sliding_window + 1)", extra_keys=1),
        "gpt_oss": ServingFamily(
            source="vllm/model_executor/models/gpt_oss.py (layer_idx % 2 == 0)", fixed_pattern=_EVEN
        ),
        **dict.fromkeys(("llama4", "gpt_neo", "modernbert-decoder"), _VLLM_NONE),
    },
    "sglang": {
        "gemma3": ServingFamily(source="python/sglang/srt/models/gemma3_causal.py"),
        "olmo3": ServingFamily(source="python/sglang/srt/models/olmo2.py, configs/olmo3.py"),
        "granite_swa": ServingFamily(source="python/sglang/srt/models/granite.py"),
        "gpt_oss": ServingFamily(source="python/sglang/srt/models/gpt_oss.py"),
        "gemma2": ServingFamily(source="python/sglang/srt/models/gemma2.py (layer_id % 2 == 0)", fixed_pattern=_EVEN),
        "cohere2": ServingFamily(
            source="python/sglang/srt/models/commandr.py",
            unsupported="gives {family} no window of its own for the whole model (get_attention_sliding_window_size is "
            "missing) and one key more in each layer: give --family gemma3, olmo3, granite_swa or gpt_oss",
        ),
        "exaone4": ServingFamily(
            source="python/sglang/srt/models/exaone4.py",
            unsupported="reads sliding_window_pattern of {family}, not layer_types: give --family gemma3, olmo3, "
            "granite_swa or gpt_oss",
        ),
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _SGLANG_FULL),
        **dict.fromkeys(("ministral", "smollm3"), _SGLANG_WIDE),
    },
    "tensorrt-llm": {
        "gemma3": ServingFamily(source="tensorrt_llm/_torch/models/modeling_gemma3.py"),
        "cohere2": ServingFamily(source="tensorrt_llm/_torch/models/modeling_cohere2.py"),
        "mistral": ServingFamily(
            source="tensorrt_llm/_torch/models/modeling_mistral.py",
            unsupported="takes layer_types of {family} from its config.json only; give --family gemma3 or cohere2",
        ),
        "exaone4": ServingFamily(
            source="tensorrt_llm/_torch/models/modeling_exaone4.py",
            unsupported="reads sliding_window_pattern of {family}, not layer_types; give --family gemma3 or cohere2",
        ),
        **dict.fromkeys(("ministral", "smollm3", "olmo3", "gemma2", "granite_swa"), _TENSORRT_NONE),
    },
}
"""Every family whose code in a serving engine was read."""


def serving_family(target: str, family: str | None, schedule: Schedule) -> ServingFamily:
    """Return how an engine (``vllm``, ``sglang`` or ``tensorrt-llm``) serves a family.

    Raises:
        ExportError: if the family is missing, was not read, ignores the schedule, or has another hard-coded pattern.
    """
    known, name = SERVING_FAMILIES[target], ENGINES[target].name
    able = [one for one, serving in known.items() if serving.unsupported is None]
    if family is None:
        raise ExportError(f"--to {target} needs --family, the family of the served model: one of {', '.join(able)}")
    if family not in known:
        raise ExportError(f"--family {family!r}: how {target} serves it was not read{did_you_mean(family, able)}")
    serving = known[family]
    if serving.starts and all(span.is_full for span in schedule):
        return serving
    if serving.unsupported is not None:
        raise ExportError(f"{name} {serving.unsupported.format(family=family)}")
    pattern = serving.fixed_pattern
    if pattern is not None and any(span.kind != pattern[i % len(pattern)] for i, span in enumerate(schedule)):
        others = [one for one in able if known[one].fixed_pattern is None]
        raise ExportError(
            f"{name} has the layers of {family} hard-coded as '{' '.join(pattern)}', repeated; give that schedule or "
            f"--family {', '.join(others)}"
        )
    return serving


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
        body = _overrides(schedule, target, serving, seq_len)
    elif target == "megatron":
        body = _megatron(schedule)
    elif target == "litgpt":
        kind = "qwen3" if model.qk_norm else "llama"
        body = _yaml(litgpt_config(schedule, size_fields(model, vocab_size, seq_len) | {"model_type": kind}))
    elif target == "torchtitan":
        body = TORCHTITAN.format(lefts=[-1 if span.size is None else span.size - 1 for span in schedule])
    else:
        pairs = [(-1, -1) if span.size is None else (span.size - 1, 0) for span in schedule]
        body = f"WINDOW_SIZES = {pairs}\n"
    return _head(schedule, target, sources) + body


def _head(schedule: Schedule, target: str, sources: Sequence[str]) -> str:
    engine = ENGINES[target]
    read = f"for {engine.name}, read from {'; '.join(sources)}"
    lines = (schedule, read, engine.evidence, engine.convention, engine.usage)
    return "".join(f"# {line}\n" for line in lines)


def litgpt_text(schedule: Schedule, values: Mapping[str, Any], name: str) -> str:
    """Return the ``model_config.yaml`` of a model; arguments are those of `litgpt_config`."""
    return _head(schedule, "litgpt", ENGINES["litgpt"].sources) + _yaml(litgpt_config(schedule, values, name))


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100)


def _window(schedule: Schedule) -> int | None:
    return next((span.size for span in schedule if not span.is_full), None)


def _megatron(schedule: Schedule) -> str:
    size = _window(schedule)
    if size is None:
        return "# no window: nothing to set\n"
    pattern = ",".join("0" if span.is_full else "1" for span in schedule)
    return f"--window-size {size - 1},0\n--window-attn-skip-freq [{pattern}]\n"


def _overrides(schedule: Schedule, target: str, serving: ServingFamily, seq_len: int) -> str:
    """Return a serving engine's configuration file, which overrides fields of the served model's ``config.json``."""
    size = _window(schedule)
    layers = ["full_attention" if span.is_full else "sliding_attention" for span in schedule]
    changed: dict[str, Any] = {"layer_types": layers}
    if size is not None:
        changed |= {"sliding_window": size - serving.extra_keys, **serving.fields}
    values: dict[str, Any] = {_OVERRIDES[target]: changed}
    if serving.impl is not None:
        values["model-impl"] = serving.impl
    if target == "tensorrt-llm":  # its cache keeps every token of every layer unless it is told
        values["kv_cache_config"] = {"max_attention_window": [span.size or seq_len for span in schedule]}
    return _yaml(values)


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
