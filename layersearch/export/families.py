"""Hugging Face families: the configuration fields through which each one obeys a schedule.

A family is data: checks and writers know none by name. Read from, and verified with, transformers 5.23
(`layersearch verify-export`). A window counts the token itself here, as in `Span`; the factor of a size field says
where a family counts otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from layersearch.errors import ExportError, did_you_mean, one_line
from layersearch.export.capabilities import Capabilities
from layersearch.schedule import SpanKind
from layersearch.schedule.schedule import MOST_LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SLIDING: Mapping[SpanKind, str] = {"full": "full_attention", "window": "sliding_attention"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's ``config.json`` holds a schedule and a model's size."""

    model_type: str
    layer_types: Mapping[SpanKind, str] = field(default_factory=lambda: _SLIDING)
    """The word for ``full``, and for the one sparse kind that the family supports."""
    layer_fields: Mapping[str, Literal["list", "runs"]] = field(default_factory=lambda: {"layer_types": "list"})
    """Fields of these words: one word per layer, or ``[[word], count]`` per run of equal layers. The first is always
    written; the family derives the others from it, so they are written only where they exist already."""
    size_fields: Mapping[str, int] = field(default_factory=lambda: {"sliding_window": 1})
    """Fields of the sparse layers' size, each with the factor applied to it; written as ``layer_fields`` are."""
    sparse_flags: Mapping[str, Any] = field(default_factory=dict)
    """Fields without which the family ignores the size."""
    size_required: bool = False
    """Whether the model needs a size even if no layer uses it."""
    rope: Literal["one", "by_type", "yarn", "none"] = "one"
    """``rope_parameters``: one for all layers, one per layer type, YaRN by a factor of 1 (which scales nothing, but
    vLLM asks for a factor), or no RoPE."""
    position_change: str | None = None
    """Further effect of a layer type; None: only its mask."""
    gqa: bool = True
    """Whether there may be fewer key-value heads than query heads."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Fields with the same value for every model of a recipe's size."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Fields that repeat a size of `layersearch.export.hf.size_fields` under another name."""
    per_layer: Mapping[str, Any] = field(default_factory=dict)
    """Lists with one value per layer."""
    decoder_weights: bool = False
    """Whether the weights of `layersearch.model.decoder.Decoder` load and give the same logits."""
    qk_norm: bool = False
    """Whether these weights normalize queries and keys."""
    inert_weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of each layer that the decoder lacks, one per query head, with the value at which they change nothing."""
    undeclared: tuple[str, ...] = ()
    """Fields that its model reads although its configuration class does not declare them."""

    @property
    def name(self) -> str:
        """The name for ``--family``."""
        return self.model_type.removesuffix("_text")

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """The configuration class in transformers."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type]

    @property
    def model_class(self) -> Any:
        """The causal language model's class in transformers."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        return MODEL_FOR_CAUSAL_LM_MAPPING[self.config_class]

    @property
    def architecture(self) -> str:
        """Name of `model_class`."""
        return self.model_class.__name__

    @property
    def capabilities(self) -> Capabilities:
        """Which spans the configuration supports."""
        sparse = next(kind for kind in self.layer_types if kind != "full")
        return Capabilities(name=f"family {self.name}", sparse=sparse)

    def build(self, values: Mapping[str, Any], where: str) -> PreTrainedConfig:
        """Return the configuration object of a ``config.json``, after its model was built on the meta device.

        Raises:
            ExportError: begins with ``where``; transformers refuses the values or cannot build the model.
        """
        import torch

        from layersearch.model.hf_decoder import quiet

        config = make_config(self.model_type, values, where)
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
        if kv_heads and heads % kv_heads:
            raise ExportError(
                f"{where}: num_key_value_heads is {kv_heads} and does not divide num_attention_heads {heads}; set it"
            )
        try:
            with torch.device("meta"), quiet():
                self.model_class(copy.deepcopy(config))
        except Exception as error:  # models raise many kinds for sizes that do not fit together
            lacks_width = getattr(config, "head_dim", 0) is None
            hint = "set head_dim, usually hidden_size / num_attention_heads" if lacks_width else "correct it"
            raise ExportError(
                f"{where}: transformers cannot build {self.architecture} ({one_line(error)}); {hint}"
            ) from None
        return config


_FAMILIES = (
    Family(model_type="ministral", size_required=True, decoder_weights=True),
    Family(model_type="qwen2", sparse_flags={"use_sliding_window": True}),
    Family(model_type="qwen3", sparse_flags={"use_sliding_window": True}, decoder_weights=True, qk_norm=True),
    Family(model_type="gemma2", size_required=True, copies={"query_pre_attn_scalar": "head_dim"}),
    Family(
        model_type="gemma3_text",
        size_required=True,
        rope="by_type",
        position_change="each layer type has a RoPE base of its own",
        copies={"query_pre_attn_scalar": "head_dim"},
    ),
    Family(model_type="cohere2", size_required=True, position_change="full layers have no RoPE"),
    Family(
        model_type="smollm3",
        sparse_flags={"use_sliding_window": True},
        per_layer={"no_rope_layers": 1},  # 1 means RoPE; the default takes it from every fourth layer
        decoder_weights=True,
    ),
    Family(
        model_type="olmo3",
        size_required=True,
        rope="by_type",
        position_change="each layer type has RoPE parameters of its own",
    ),
    Family(
        model_type="gpt_oss",
        size_required=True,
        rope="yarn",
        # One expert for every token equals the dense layer of a recipe.
        constants={"num_local_experts": 1, "num_experts_per_tok": 1},
    ),
    Family(model_type="exaone4", position_change="full layers have no RoPE where sliding_window is set"),
    Family(
        model_type="granite_swa",
        size_required=True,
        copies={"attention_multiplier": "attention_scale"},
        decoder_weights=True,
        # One learned sink per head joins the softmax's denominator; exp(-10,000) adds nothing to it, in bfloat16 too.
        inert_weights={"self_attn.sinks": -1e4},
        undeclared=("head_dim",),
    ),
    Family(
        model_type="llama4_text",
        layer_types={"full": "full_attention", "block": "chunked_attention"},
        size_fields={"attention_chunk_size": 1},
        size_required=True,
        constants={"moe_layers": []},
        copies={"intermediate_size_mlp": "intermediate_size"},
        per_layer={"no_rope_layers": 1},  # 1 means RoPE; an empty list would mean the default
    ),
    Family(
        model_type="gpt_neo",
        layer_types={"full": "global", "window": "local"},
        layer_fields={"attention_types": "runs", "attention_layers": "list"},
        size_fields={"window_size": 1},
        size_required=True,
        rope="none",
        gqa=False,
        copies={"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"},
    ),
    Family(
        model_type="modernbert-decoder",
        # The field counts both sides of the encoder's window; the decoder sees half of it, the token itself included.
        size_fields={"local_attention": 2, "sliding_window": 1},
        size_required=True,
        rope="by_type",
        position_change="each layer type has a RoPE base of its own",
        gqa=False,
        # The configuration requires numbers and refuses None.
        constants={"pad_token_id": 0, "bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    ),
)
FAMILIES = {family.name: family for family in _FAMILIES}  # every family by its name for `--family`

IGNORE_LAYER_TYPES: dict[str, str] = {
    "llama": "ministral",
    "mistral": "ministral",
    "mixtral": "",
    "phi3": "",
    "starcoder2": "",
    "qwen3_moe": "",
}
"""Model types that accept ``layer_types`` but ignore it, with the family that loads their weights."""

LLAMA_SHAPED = ("llama", "mistral", "ministral")
"""Model types whose weights have Llama's names; `WITH_SINKS` holds them too, with its sinks made inert."""
WITH_SINKS = "granite_swa"
"""The family that carries a Llama's weights and a schedule into transformers, vLLM and llama.cpp alike."""


def default_family(qk_norm: bool) -> str:
    """Return the family for ``--to hf`` where none is named, by whether the model normalizes queries and keys."""
    return "qwen3" if qk_norm else WITH_SINKS


def converted_family(model_type: str, family: str | None) -> str | None:
    """Return the family that a configuration of this type is rewritten as; None: it keeps its type.

    ``family`` is the user's choice, if any.
    """
    if family == WITH_SINKS and model_type in LLAMA_SHAPED:
        return family
    return IGNORE_LAYER_TYPES.get(model_type)


ENCODER_TYPES = ("modernbert", "longformer", "led", "longt5", "t5gemma", "bert")
"""Model types of `layersearch.export.encoders.ENCODERS`."""
_SIZES = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
_BY_LAYER = ("per_layer_config", "sliding_windows", "layer_windows", "window_sizes", "sliding_window_sizes")


def find_family(name: str | None) -> Family:
    """Return the family that ``--family`` names, or refuse a name that is missing, unknown or ignores schedules."""
    if name is None:
        raise ExportError(f"--to hf needs --family: one of {', '.join(FAMILIES)}")
    if name in IGNORE_LAYER_TYPES:
        other = IGNORE_LAYER_TYPES[name]
        remedy = f"--family {other}, which loads its weights" if other else "--family ministral"
        raise ExportError(f"--family {name}: transformers' {name} ignores layer_types; give {remedy}")
    if name in ENCODER_TYPES:
        raise ExportError(f"--family {name} is an encoder's, and the model is a decoder; give {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        raise ExportError(f"--family {name!r} is not known{did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def check_no_layer_windows(config: Mapping[str, Any], where: str) -> None:
    """Refuse windows per layer in a stock family's ``config.json``: transformers fails on them or ignores them."""
    nested = [value for key, value in config.items() if key.endswith("text_config") and isinstance(value, Mapping)]
    for part in (config, *nested):
        for key in (*_SIZES, *_BY_LAYER):
            value = part.get(key)
            if isinstance(value, list | Mapping) and value:
                from layersearch.export.remote.modeling_layersearch import BASES

                family = config.get("model_type", "of no name")
                several = "; layersearch convert --model --family hf-remote saves several" if family in BASES else ""
                raise ExportError(
                    f"{where}: {key} gives each layer its own window, which stock family {family!r} does not run; "
                    f"drop it and use one size{several}"
                )


def make_config(model_type: str, values: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """Return transformers' configuration object of a model type that it knows, or refuse as transformers does."""
    from transformers import CONFIG_MAPPING

    from layersearch.data.quiet import quiet

    for key, value in values.items():  # transformers makes a list of so many
        if "layer" in str(key) and isinstance(value, int) and value > MOST_LAYERS:
            raise ExportError(f"{where}: {key} is {value}, more than {MOST_LAYERS} layers; correct it")
    try:
        with quiet():
            return CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:  # its checks raise many kinds
        raise ExportError(f"{where}: transformers refuses it ({one_line(error)}); correct it") from None
