"""Which parameters of a routed model are trained: all, those of attention, or low-rank updates."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from layersearch.errors import UserError
from layersearch.model.hf_decoder import HFDecoder


def attention_names(routed: HFDecoder) -> list[str]:
    """Return the names of the attention layers inside the stock model."""
    wanted = {id(module) for module in routed.attention}
    return [name for name, module in routed.model.named_modules() if id(module) in wanted]


def adapt(routed: HFDecoder, *, only_attention: bool, lora: int | None) -> None:
    """Freeze what is not to be trained, and put low-rank updates in where they are asked for.

    Args:
        routed: changed in place.
        only_attention: train, or update, the attention layers only.
        lora: rank of the updates on linear layers (the output layer keeps its weights); None: train the weights.

    Raises:
        UserError: if `peft` is missing.
    """
    inside = attention_names(routed)
    if lora is None:
        if only_attention:
            for name, parameter in routed.model.named_parameters():
                parameter.requires_grad = any(name.startswith(f"{prefix}.") for prefix in inside)
        return
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError('--lora needs peft; install it: pip install "layersearch[convert]"') from None
    from transformers.pytorch_utils import Conv1D

    output = routed.model.get_output_embeddings()
    linear = {
        name: module
        for name, module in routed.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and (not only_attention or any(name.startswith(f"{prefix}.") for prefix in inside))
    }
    config = LoraConfig(
        r=lora,
        lora_alpha=2 * lora,
        lora_dropout=0.0,
        target_modules=sorted(linear),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices on fan_in_fan_out, which is set right above
        routed.model = get_peft_model(routed.model, config)


def merge(routed: HFDecoder) -> None:
    """Merge low-rank updates into the weights they update."""
    model: Any = routed.model
    if hasattr(model, "merge_and_unload"):
        routed.model = model.merge_and_unload()
