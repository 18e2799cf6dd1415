"""What training and serving engines call a window, read from one release of each.

Every fact stands beside the file it was read from. ``W`` is ours: keys, the token itself counted. Nothing here was run
on a GPU; `analysis/engines` says which engines' own code the files were put through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layersearch.errors import UserError, did_you_mean
from layersearch.export.capabilities import Capabilities
from layersearch.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's release."""

    title: str
    release: str
    """The release that was read."""
    read: tuple[str, ...]
    """The files of that release that say so."""
    convention: str
    """What its window size counts, in words."""
    file: str
    """The file that the export writes."""
    use: str
    """The command or the line that uses that file."""
    size_per_layer: bool = False
    """Every layer has a window of its own."""
    min_window: int = 1
    """The smallest window that is one, in keys."""

    @property
    def name(self) -> str:
        """Its name and release, as errors say it."""
        return f"{self.title} {self.release}"

    @property
    def capabilities(self) -> Capabilities:
        """What spans it holds."""
        return Capabilities(name=self.name, size_per_layer=self.size_per_layer)


ENGINES: dict[str, Engine] = {
    "megatron": Engine(
        title="Megatron-core",
        release="0.16.1",
        read=(
            "megatron/training/arguments.py (tuple_type, moe_freq_type)",
            "megatron/core/transformer/utils.py (get_sliding_window_causal_mask, is_layer_window_attention)",
        ),
        convention="--window-size LEFT,0 sees LEFT keys before the token and the token: LEFT = W-1; in "
        "--window-attn-skip-freq 1 is a window, 0 is full",
        file="megatron.args",
        use="torchrun ... pretrain_gpt.py $(grep -v '^#' megatron.args) ...",
    ),
    "vllm": Engine(
        title="vLLM",
        release="0.33.0",
        read=(
            "vllm/v1/attention/backends/flash_attn.py (sliding_window - 1, 0)",
            "vllm/engine/arg_utils.py (layer_types)",
            "vllm/utils/argparse_utils.py (load_config_file)",
        ),
        convention="sliding_window counts the token itself: W",
        file="vllm.yaml",
        use="vllm serve MODEL --config vllm.yaml",
    ),
    "sglang": Engine(
        title="SGLang",
        release="0.5.23",
        read=(
            "python/sglang/srt/layers/radix_attention.py (a window of 0 further keys is read as none)",
            "python/sglang/srt/utils/server_args_config_parser.py",
        ),
        convention="sliding_window counts the token itself: W; the model code subtracts 1",
        file="sglang.yaml",
        use="python -m sglang.launch_server --model-path MODEL --config sglang.yaml",
        min_window=2,
    ),
    "tensorrt-llm": Engine(
        title="TensorRT-LLM",
        release="at commit 3105370ba2f2",
        read=(
            "docs/source/legacy/advanced/gpt-attention.md (Sliding Window Attention, Cyclic KV Cache)",
            "the reference of the LLM API's KvCacheConfig (max_attention_window, a list that repeats over the layers)",
        ),
        convention="max_attention_window is the number of last tokens that are kept and seen, the token itself "
        "counted: W; a full layer has the longest text",
        file="tensorrt_llm.yaml",
        use="trtllm-serve ENGINE --backend tensorrt --extra_llm_api_options tensorrt_llm.yaml   # the PyTorch backend "
        "computes the windows of the model's own code, whatever this list says",
        size_per_layer=True,
    ),
    "litgpt": Engine(
        title="LitGPT",
        release="0.5.13",
        read=("litgpt/config.py (sliding_window_size, sliding_window_indices)", "litgpt/model.py"),
        convention="sliding_window_size counts the token itself: W; in sliding_window_indices 1 is a window, 0 is "
        "full. With a KV cache, LitGPT refuses a prompt longer than W",
        file="model_config.yaml",
        use="litgpt.Config.from_file('model_config.yaml')",
    ),
    "torchtitan": Engine(
        title="torchtitan",
        release="0.3.0",
        read=(
            "torchtitan/models/common/attention.py (VarlenAttention.Config.window_size)",
            "torchtitan/models/gpt_oss/__init__.py (sliding_window_size - 1, 0)",
        ),
        convention="window_size=(LEFT, 0) sees LEFT keys before the token and the token: LEFT = W-1",
        file="torchtitan_windows.py",
        use="from torchtitan_windows import with_windows; "
        "config = with_windows(config)   # in a config function; attn_backend='varlen'",
        size_per_layer=True,
    ),
    "flash-attn": Engine(
        title="flash-attn",
        release="2.8.3.post1",
        read=(
            "flash_attn/flash_attn_interface.py (flash_attn_func)",
            "tests/test_flash_attn.py (construct_local_mask)",
        ),
        convention="window_size=(LEFT, 0) sees LEFT keys before the token and the token: LEFT = W-1",
        file="flash_attn_windows.py",
        use="flash_attn_func(q, k, v, causal=True, window_size=WINDOW_SIZES[layer])",
        size_per_layer=True,
    ),
}
"""Every engine by the name that ``--to`` takes."""


@dataclass(frozen=True, kw_only=True)
class ServingFamily:
    """How a serving engine reads one Hugging Face family's configuration."""

    read: str
    """The file of the release that says so."""
    extra_keys: int = 0
    """Keys that its code sees beyond ``sliding_window``; a ``sliding_window`` of 0 is read as none."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields without which the family drops its windows."""
    impl: str | None = None
    """``--model-impl``, where the engine has no code of its own for the family."""
    fixed_pattern: tuple[str, ...] | None = None
    """The kinds of layers it has hard-coded, repeated; None: it reads ``layer_types``."""
    unsupported: str | None = None
    """Why it cannot hold any schedule with windows, and what to do; None where it can."""


_BY_TRANSFORMERS = ServingFamily(
    read="vllm/model_executor/models/transformers/base.py (layer_types)", impl="transformers"
)
_VLLM_QWEN = ServingFamily(
    read="vllm/model_executor/models/qwen2.py",
    unsupported="runs {family} all-full whatever layer_types says: use export --to hf --family {family} and serve that "
    "folder with vllm serve DIR --model-impl transformers, or give --family llama",
)
_SGLANG_FULL = ServingFamily(
    read="python/sglang/srt/models",
    unsupported="runs {family} all-full whatever layer_types says: give --family gemma3, olmo3, granite_swa or gpt_oss",
)

SERVING_FAMILIES: dict[str, dict[str, ServingFamily]] = {
    "vllm": {
        "llama": ServingFamily(read="vllm/model_executor/models/llama.py"),
        "ministral": _BY_TRANSFORMERS,
        "smollm3": dataclasses.replace(_BY_TRANSFORMERS, fields={"use_sliding_window": True}),
        "olmo3": _BY_TRANSFORMERS,
        "gemma2": ServingFamily(read="vllm/model_executor/models/gemma2.py"),
        "gemma3": ServingFamily(read="vllm/model_executor/models/gemma3.py"),
        "exaone4": ServingFamily(read="vllm/model_executor/models/exaone4.py"),
        "granite_swa": ServingFamily(read="vllm/model_executor/models/granite.py"),
        "cohere2": ServingFamily(read="vllm/model_executor/models/commandr.py (sliding_window + 1)", extra_keys=1),
        "gpt_oss": ServingFamily(
            read="vllm/model_executor/models/gpt_oss.py (layer_idx % 2 == 0)", fixed_pattern=("window", "full")
        ),
        "qwen2": _VLLM_QWEN,
        "qwen3": _VLLM_QWEN,
    },
    "sglang": {
        "gemma3": ServingFamily(read="python/sglang/srt/models/gemma3_causal.py"),
        "olmo3": ServingFamily(read="python/sglang/srt/models/olmo2.py, configs/olmo3.py"),
        "granite_swa": ServingFamily(read="python/sglang/srt/models/granite.py"),
        "gpt_oss": ServingFamily(read="python/sglang/srt/models/gpt_oss.py"),
        "gemma2": ServingFamily(
            read="python/sglang/srt/models/gemma2.py (layer_id % 2 == 0)", fixed_pattern=("window", "full")
        ),
        "cohere2": ServingFamily(
            read="python/sglang/srt/models/commandr.py",
            unsupported="gives {family} no window of its own for the whole model (get_attention_sliding_window_size is "
            "missing) and one key more in each layer: give --family gemma3, olmo3, granite_swa or gpt_oss",
        ),
        "llama": _SGLANG_FULL,
        "ministral": _SGLANG_FULL,
        "qwen2": _SGLANG_FULL,
        "qwen3": _SGLANG_FULL,
        "smollm3": _SGLANG_FULL,
    },
}
"""Every family whose code in a serving engine was read."""


def serving_family(target: str, family: str | None, schedule: Schedule) -> ServingFamily:
    """Return how an engine serves a family, checked against the kinds of layers asked for.

    Args:
        target: ``vllm`` or ``sglang``.
        family: the model's family.
        schedule: one span per layer; holds full layers and windows only.

    Raises:
        UserError: if the family is missing, was not read, ignores the schedule, or has another pattern hard-coded; says
            what to do instead.
    """
    known = SERVING_FAMILIES[target]
    able = [name for name, how in known.items() if how.unsupported is None]
    if family is None:
        raise UserError(
            f"--to {target} needs --family, the family of the model that is served: one of {', '.join(able)}"
        )
    if family not in known:
        raise UserError(f"--family {family!r}: how {target} serves it was not read{did_you_mean(family, able)}")
    how, name = known[family], ENGINES[target].name
    windows = any(not span.is_full for span in schedule)
    if how.unsupported is not None and windows:
        raise UserError(f"{name} {how.unsupported.format(family=family)}")
    kinds = [span.kind for span in schedule]
    if (
        how.fixed_pattern is not None
        and windows
        and any(k != how.fixed_pattern[i % len(how.fixed_pattern)] for i, k in enumerate(kinds))
    ):
        others = [one for one in able if known[one].fixed_pattern is None]
        raise UserError(
            f"{name} has the layers of {family} hard-coded as '{' '.join(how.fixed_pattern)}' over and over; give that schedule "
            f"or --family {', '.join(others)}"
        )
    return how
