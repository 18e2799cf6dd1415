"""The trainable parameters of a conversion: all, those of attention, or low-rank updates."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from layersearch.errors import LayersearchError
from layersearch.model.hf_decoder import HFDecoder


def adapt(decoder: HFDecoder, *, only_attention: bool, lora: int | None, seed: int = 0) -> None:
    """Freeze the other parameters, and insert low-rank updates if a rank is given.

    Args:
        decoder: changed in place.
        only_attention: train, or update, the attention layers only.
        lora: rank of the updates on linear layers (the output layer keeps its weights); None: train the weights.
        seed: of the updates' initial weights.

    Raises:
        LayersearchError: if `peft` is missing.
    """
    wanted = {id(module) for module in decoder.attention}
    attention = tuple(f"{name}." for name, module in decoder.model.named_modules() if id(module) in wanted)
    if lora is None:
        if only_attention:
            for name, parameter in decoder.model.named_parameters():
                parameter.requires_grad = name.startswith(attention)
        return
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise LayersearchError('--lora needs peft; install it: pip install "layersearch[convert]"') from None
    from transformers.pytorch_utils import Conv1D

    output = decoder.model.get_output_embeddings()
    linear = {
        name: module
        for name, module in decoder.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and (not only_attention or name.startswith(attention))
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
        warnings.simplefilter("ignore")  # notices on fan_in_fan_out, which is set above
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the updates are drawn here
            decoder.model = get_peft_model(decoder.model, config)


def merge(decoder: HFDecoder) -> None:
    """Merge low-rank updates into the weights."""
    model: Any = decoder.model
    if hasattr(model, "merge_and_unload"):
        decoder.model = model.merge_and_unload()
