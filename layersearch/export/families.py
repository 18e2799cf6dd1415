"""What each Hugging Face family calls a span and which fields must be set for it to be obeyed.

A family is data: the checks and the writers know none by name. Read from, and proven on, transformers 5.23
(`layersearch verify-export`). Every window here counts the token itself, as `Span` does, whatever its field holds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from layersearch.errors import UserError
from layersearch.export.capabilities import Capabilities
from layersearch.schedule import SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SWA: Mapping[SpanKind, str] = {"full": "full_attention", "window": "sliding_attention"}
_WINDOW: Mapping[SpanKind, Mapping[str, int]] = {"window": {"sliding_window": 1}}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's ``config.json`` holds a schedule, and a model's size."""

    model_type: str
    """As ``config.json`` names it."""
    config_class: str
    """The configuration class in ``transformers``."""
    architecture: str
    """The causal language model's class."""
    layer_types: Mapping[SpanKind, str] = field(default_factory=lambda: _SWA)
    """The word for each span kind; a kind that is absent cannot be held."""
    layer_fields: Mapping[str, Literal["list", "runs"]] = field(default_factory=lambda: {"layer_types": "list"})
    """The fields that hold those words: one a layer, or ``[[word], times]`` by run. The first is always written, the
    others, which the family derives from it, where they stand already."""
    size_fields: Mapping[SpanKind, Mapping[str, int]] = field(default_factory=lambda: _WINDOW)
    """The fields that hold the one size of a kind, each with what it is multiplied by; written as ``layer_fields``."""
    sparse_flags: Mapping[str, Any] = field(default_factory=dict)
    """Fields without which the sizes are ignored."""
    size_required: bool = False
    """The model wants its size field set, though no layer uses it."""
    rope: Literal["one", "by_type", "none"] = "one"
    """``rope_parameters``: one for all layers, one per layer type, or no rotary positions at all."""
    position_change: str | None = None
    """What a layer's type changes besides its mask; None: nothing."""
    gqa: bool = True
    """Fewer key-value heads than query heads are possible."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a model of a recipe's size that are always the same."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Further fields that hold a size by another name, see `layersearch.export.hf.model_fields`."""
    per_layer: Mapping[str, Any] = field(default_factory=dict)
    """Lists of one value a layer."""
    decoder_weights: bool = False
    """The weights of `layersearch.model.decoder.Decoder` load, and give the same logits."""
    qk_norm: bool = False
    """Of those weights: queries and keys are normalised."""

    def build(self, values: Mapping[str, Any], where: str) -> PreTrainedConfig:
        """Return transformers' configuration of this family, from which its model was built on the meta device.

        Args:
            values: what ``config.json`` holds.
            where: the file, for the error.

        Raises:
            UserError: if transformers refuses it or cannot build the model.
        """
        import torch
        import transformers

        from layersearch.model.hf_decoder import quiet

        config = configuration(self.model_type, values, where)
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
        if kv_heads and heads % kv_heads:
            raise UserError(
                f"{where}: num_key_value_heads is {kv_heads} and does not divide num_attention_heads {heads}; set it"
            )
        try:
            with torch.device("meta"), quiet():
                getattr(transformers, self.architecture)(copy.deepcopy(config))
        except Exception as error:  # whatever a model makes of sizes that do not fit together
            lacks_width = getattr(config, "head_dim", 0) is None
            hint = "set head_dim, as a rule hidden_size / num_attention_heads" if lacks_width else "correct it"
            raise UserError(
                f"{where}: transformers cannot build {self.architecture} ({_line(error)}); {hint}"
            ) from None
        return config

    def capabilities(self, name: str) -> Capabilities:
        """Return what the family's configuration can hold."""
        return Capabilities(name=f"family {name}", kinds=tuple(self.layer_types))


FAMILIES: dict[str, Family] = {
    "ministral": Family(
        model_type="ministral",
        config_class="MinistralConfig",
        architecture="MinistralForCausalLM",
        size_required=True,
        decoder_weights=True,
    ),
    "qwen2": Family(
        model_type="qwen2",
        config_class="Qwen2Config",
        architecture="Qwen2ForCausalLM",
        sparse_flags={"use_sliding_window": True},
    ),
    "qwen3": Family(
        model_type="qwen3",
        config_class="Qwen3Config",
        architecture="Qwen3ForCausalLM",
        sparse_flags={"use_sliding_window": True},
        decoder_weights=True,
        qk_norm=True,
    ),
    "gemma2": Family(
        model_type="gemma2",
        config_class="Gemma2Config",
        architecture="Gemma2ForCausalLM",
        size_required=True,
        copies={"query_pre_attn_scalar": "head_dim"},
    ),
    "gemma3": Family(
        model_type="gemma3_text",
        config_class="Gemma3TextConfig",
        architecture="Gemma3ForCausalLM",
        size_required=True,
        rope="by_type",
        position_change="each layer type has a RoPE base of its own",
        copies={"query_pre_attn_scalar": "head_dim"},
    ),
    "cohere2": Family(
        model_type="cohere2",
        config_class="Cohere2Config",
        architecture="Cohere2ForCausalLM",
        size_required=True,
        position_change="full layers have no RoPE",
    ),
    "smollm3": Family(
        model_type="smollm3",
        config_class="SmolLM3Config",
        architecture="SmolLM3ForCausalLM",
        sparse_flags={"use_sliding_window": True},
        per_layer={"no_rope_layers": 1},  # 1 means RoPE; the default takes it from every fourth layer
        decoder_weights=True,
    ),
    "olmo3": Family(
        model_type="olmo3",
        config_class="Olmo3Config",
        architecture="Olmo3ForCausalLM",
        size_required=True,
        rope="by_type",
        position_change="each layer type has RoPE parameters of its own",
    ),
    "gpt_oss": Family(
        model_type="gpt_oss",
        config_class="GptOssConfig",
        architecture="GptOssForCausalLM",
        size_required=True,
        # One expert that every token visits is the dense layer of a recipe.
        constants={"num_local_experts": 1, "num_experts_per_tok": 1},
    ),
    "exaone4": Family(
        model_type="exaone4",
        config_class="Exaone4Config",
        architecture="Exaone4ForCausalLM",
        position_change="full layers have no RoPE where sliding_window is set",
    ),
    "granite_swa": Family(
        model_type="granite_swa",
        config_class="GraniteSWAConfig",
        architecture="GraniteSWAForCausalLM",
        size_required=True,
        copies={"attention_multiplier": "attention_scale"},
    ),
    "llama4": Family(
        model_type="llama4_text",
        config_class="Llama4TextConfig",
        architecture="Llama4ForCausalLM",
        layer_types={"full": "full_attention", "block": "chunked_attention"},
        size_fields={"block": {"attention_chunk_size": 1}},
        size_required=True,
        constants={"moe_layers": []},
        copies={"intermediate_size_mlp": "intermediate_size"},
        per_layer={"no_rope_layers": 1},  # 1 means RoPE; an empty list would mean the default
    ),
    "gpt_neo": Family(
        model_type="gpt_neo",
        config_class="GPTNeoConfig",
        architecture="GPTNeoForCausalLM",
        layer_types={"full": "global", "window": "local"},
        layer_fields={"attention_types": "runs", "attention_layers": "list"},
        size_fields={"window": {"window_size": 1}},
        size_required=True,
        rope="none",
        gqa=False,
        copies={"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    ),
    "modernbert-decoder": Family(
        model_type="modernbert-decoder",
        config_class="ModernBertDecoderConfig",
        architecture="ModernBertDecoderForCausalLM",
        # The field holds both sides of the encoder's window; the decoder looks back half of it, itself counted.
        size_fields={"window": {"local_attention": 2, "sliding_window": 1}},
        size_required=True,
        rope="by_type",
        position_change="each layer type has a RoPE base of its own",
        gqa=False,
        # Numbers are demanded here; None would be refused.
        constants={"pad_token_id": 0, "bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    ),
}
"""Every family by the name that ``--family`` takes."""

IGNORE_LAYER_TYPES: dict[str, str] = {
    "llama": "ministral",
    "mistral": "ministral",
    "mixtral": "",
    "phi3": "",
    "starcoder2": "",
    "qwen3_moe": "",
}
"""Model types that take ``layer_types`` and see everything all the same, with the family that loads their weights."""

_SIZES = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
_BY_LAYER = ("per_layer_config", "sliding_windows", "layer_windows", "window_sizes", "sliding_window_sizes")


def check_no_layer_windows(config: Mapping[str, Any], where: str) -> None:
    """Refuse windows by layer in a stock family's configuration: transformers raises on them or passes over them.

    Args:
        config: what ``config.json`` holds.
        where: the file, for the error.

    Raises:
        UserError: names the key.
    """
    nested = [value for key, value in config.items() if key.endswith("text_config") and isinstance(value, Mapping)]
    family = config.get("model_type", "of no name")
    for part in (config, *nested):
        for key in (*_SIZES, *_BY_LAYER):
            value = part.get(key)
            if isinstance(value, list | Mapping) and value:
                raise UserError(
                    f"{where}: {key} gives layers windows of their own, which stock family {family!r} does not run; "
                    "drop it and use one size, or export with --to hf-remote"
                )


def configuration(model_type: str, values: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """Return transformers' configuration object of a model type.

    Args:
        model_type: one that transformers knows.
        values: what ``config.json`` holds.
        where: the file, for the error.

    Raises:
        UserError: if transformers refuses it.
    """
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:  # whatever the library's own checks make of it
        raise UserError(f"{where}: transformers refuses it ({_line(error)}); correct it") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
