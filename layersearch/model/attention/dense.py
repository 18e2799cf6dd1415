"""Attention over short texts on a CPU: every pair, in two batched products that torch.compile joins with the rest.

A kernel that skips what a span does not see pays for its calls and copies. Below `MOST_TOKENS` those cost more than the
pairs. The span is a tensor here, so one compiled region serves all spans.

Shape legend: B batch, H query heads, G key-value heads, T tokens, D head width.
"""

import functools
import math

import torch
from torch import Tensor

from layersearch.model.attention.reference import span_mask
from layersearch.schedule import Span

MOST_TOKENS = 128
"""Longest text, in tokens, that is attended to in this way (measured, see analysis/throughput)."""


def serves(span: Span, tokens: int, device: torch.device) -> bool:
    """Return whether `dense_attention` serves a compiled model: short texts on a CPU, spans that are a mask alone."""
    return device.type == "cpu" and tokens <= MOST_TOKENS and span.decay == 0 and span.pool == 1


@functools.lru_cache(maxsize=256)
def hidden(span: Span, tokens: int, heads: int, bidirectional: bool = False) -> Tensor:
    """Return the mask of the pairs that are not seen, (1, T, T), or (H, T, T) where heads differ."""
    mask = span_mask(span, tokens, heads if span.dilated_heads is not None else 1, bidirectional=bidirectional)
    return ~mask.contiguous()


def dense_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Return attention over all pairs that are not hidden, computed in float32.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        hidden: as the function `hidden` returns it.

    Returns:
        (B, H, T, D) in q's precision.
    """
    batch, heads, tokens, width = q.shape
    with torch.autocast(q.device.type, enabled=False):
        # One head for each query head, in one batch of products.
        queries, keys, values = (
            x.float().repeat_interleave(heads // x.shape[1], dim=1).reshape(-1, tokens, width) for x in (q, k, v)
        )
        scores = torch.bmm(queries, keys.mT).view(batch, heads, tokens, tokens) * (1.0 / math.sqrt(width))
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
        return torch.bmm(weights.view(-1, tokens, tokens), values).view(q.shape).to(q.dtype)
