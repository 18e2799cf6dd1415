"""Encoders by our kernels with weights of transformers: biases by position, heads, and random weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Span


def biased(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, span: Span, scale: float, more: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return attention of an encoder over a span, with ``bias`` (H, T, keys) added to the scaled logits.

    The bias is another part of each head: query i holds its row, and key j the j-th unit vector. So our own kernels
    run with it. ``more`` are the keys and values of summaries, whose bias comes last.
    """
    batch, heads, tokens, width = q.shape
    keys = bias.shape[-1]
    unit, wide = torch.eye(keys, dtype=q.dtype), (width + keys) ** 0.5
    rows = torch.cat((q * scale, bias.expand(batch, heads, tokens, keys)), -1) * wide
    held = torch.cat((k, unit[:tokens].expand(batch, heads, tokens, keys)), -1)
    pad = (0, keys)
    if more is not None:
        count = keys - tokens
        more_k = torch.cat((more[0], unit[tokens:].expand(batch, heads, count, keys)), -1)
        more = more_k, F.pad(more[1], pad)
    values = F.pad(v, pad)
    return attend(rows, held, values, span, bidirectional=True, summaries=more)[..., :width]


def random_weights(module: torch.nn.Module) -> Any:
    """Return a module in double precision with random weights, so that each part of it matters."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def by_head(x: Tensor, heads: int) -> Tensor:
    """Return (B, T, C) as (B, H, T, C / H)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """Return (B, H, T, D) as (B, T, H D)."""
    return x.transpose(1, 2).flatten(2)
