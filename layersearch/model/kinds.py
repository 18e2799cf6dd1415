"""Kinds of models: a decoder of plain attention runs here; every other kind is refused before its weights are read."""

from __future__ import annotations

import copy
from typing import Any

import torch

from layersearch.data.quiet import quiet
from layersearch.errors import LayersearchError, one_line
from layersearch.model.hf_decoder import HFDecoder

PLAIN_LAYERS = ("full_attention", "sliding_attention")
"""The ``layer_types`` of plain attention, as transformers names them."""


def other_kind(config: Any) -> str | None:
    """Return what a transformers configuration describes, if that is seen not to be a decoder of plain attention."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    parts = [name for name in getattr(config, "sub_configs", {}) if name not in ("attn_config", "ffn_config")]
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    if parts:
        return f"a model of several parts ({', '.join(parts)}), such as vision and language"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "an encoder, which sees later tokens"
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in PLAIN_LAYERS:
            return f"a model whose layer {layer} is {kind}, not plain attention"
    return None


def check_kind(what: str, config: Any, *, remote: bool = False) -> None:
    """Refuse a model that is no decoder of plain attention.

    Args:
        what: the key and the model's name, for the error.
        config: its transformers configuration.
        remote: its modeling file defines a causal language model.

    Raises:
        LayersearchError: names the kind.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = other_kind(config)
    if kind is None and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        kind = "no causal language model that transformers knows"
    if kind is not None:
        parts = getattr(config, "sub_configs", {})
        give = "save its text model alone and give that, or give" if "text_config" in parts else "give"
        raise LayersearchError(
            f"{what}: {config.model_type} is {kind}; {give} a decoder of plain attention, for example a Llama, "
            "Qwen, Mistral, Mixtral, Gemma, GPT-2, GPT-NeoX, gpt-oss, SmolLM or OLMo"
        )


def wrap(what: str, model: Any, *, check: bool) -> HFDecoder:
    """Return a transformers model as a decoder; ``check`` as in `HFDecoder`.

    Raises:
        LayersearchError: names the layer and what it has that is not plain attention.
    """
    try:
        return HFDecoder(model, check=check)
    except LayersearchError as error:
        raise LayersearchError(f"{what}: {error}") from None
    except Exception as error:  # others' modeling files raise any kind
        raise LayersearchError(f"{what}: its attention fails ({one_line(error)}); give another architecture") from None


def skeleton(what: str, config: Any) -> HFDecoder | None:
    """Return a decoder without weights, on torch's meta device; None where transformers cannot run it there.

    Raises:
        LayersearchError: as in `wrap`.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config._experts_implementation = "batched_mm"  # the one whose shapes do not depend on the tokens
    try:
        with quiet(), torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
        return wrap(what, model, check=False)
    except LayersearchError as error:
        if " meta " in str(error):
            return None
        raise
    except Exception as error:  # the configuration's values are at fault
        raise LayersearchError(f"{what}: no model can be built ({one_line(error)}); correct its config.json") from None
