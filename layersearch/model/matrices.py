"""FLOPs of a stock model's matrices, read from the shapes of its modules: no weights are needed.

One multiply-add = one FLOP. Looking up an embedding costs nothing. A token passes through the experts that the router
picks for it, and not through the others.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from layersearch.data.quiet import quiet
from layersearch.errors import LayersearchError, one_line

PARTS = ("projections", "mlp", "head")
"""Attention's queries, keys, values and outputs; feed-forward layers with routers and experts; the output layer."""
_PICKED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "top_k")
_ATTENTION = re.compile(r"(^|\.)\w*att(n|ention)\w*(\.|$)")


def matrix_flops(config: Any, what: str) -> dict[str, int]:
    """Return the FLOPs of one token's matrix products outside of attention's QK^T and AV, by `PARTS`.

    Args:
        config: transformers' configuration of a causal language model. The model is built on torch's meta device.
        what: the file or key, for errors.

    Raises:
        LayersearchError: if the model cannot be built there, or has a layer that is no matrix product.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), quiet():
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(config)
    except Exception as error:  # models raise many kinds for sizes that do not fit together
        raise LayersearchError(f"{what}: transformers cannot build it ({one_line(error)}); correct it") from None
    return module_flops(model, what)


def module_flops(model: Any, what: str) -> dict[str, int]:
    """Return the FLOPs as `matrix_flops` does, of a model that is built already."""
    flops, output = dict.fromkeys(PARTS, 0), model.get_output_embeddings()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        matrices = {key: held for key, held in own.items() if held.ndim > 1 and not key.endswith("bias")}
        if not matrices or isinstance(module, nn.Embedding):
            continue
        part = "head" if module is output else "projections" if _ATTENTION.search(name) else "mlp"
        stacked = {key: held for key, held in matrices.items() if held.ndim == 3}
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or any(held.ndim > 3 for held in own.values()):
            raise LayersearchError(f"{what}: {name} is a convolution, whose FLOPs are not counted; leave it out")
        if stacked:  # the experts in one tensor
            experts = next(iter(stacked.values())).shape[0]
            flops[part] += sum(held.numel() for held in stacked.values()) // experts * _picked(model, what)
            continue
        count = sum(held.numel() for held in matrices.values())
        listed = re.search(r"^(.*\.experts)\.\d+\.", name)
        if listed is None:
            flops[part] += count
        elif name.startswith(f"{listed[1]}.0."):  # the experts in a list, all alike
            flops[part] += count * _picked(model, what)
    return flops


def _picked(model: Any, what: str) -> int:
    """Return how many experts a token passes through."""
    for field in _PICKED:
        if isinstance(value := getattr(model.config, field, None), int):
            return value
    raise LayersearchError(f"{what}: no key names the experts of a token; add num_experts_per_tok")
