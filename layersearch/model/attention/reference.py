"""Attention over a span, written literally: every fast kernel is tested against it.

Shape legend: B batch, H query heads, G key-value heads, T tokens, D head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.schedule import Span


def span_mask(
    span: Span,
    seq_len: int,
    n_heads: int,
    device: torch.device | str | None = None,
    *,
    bidirectional: bool = False,
) -> Tensor:
    """Return which keys each query may see, (H, T, T) boolean: head, query, key. Summaries are not among them.

    Example:
        >>> from layersearch import Span, span_mask
        >>> span_mask(Span.parse("window:2"), seq_len=3, n_heads=1).int().tolist()
        [[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]
    """
    tokens = torch.arange(seq_len, device=device)
    heads = torch.arange(n_heads, device=device)
    place = tokens[None, :, None], tokens[None, None, :], heads[:, None, None]
    visible: Tensor = span.visible(*place, bidirectional=bidirectional, tokens=seq_len)
    return visible.expand(n_heads, seq_len, seq_len)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    *,
    bidirectional: bool = False,
    summaries: tuple[Tensor, Tensor] | None = None,
    marked: Tensor | None = None,
) -> Tensor:
    """Return attention over ``span``, with every (query, key) pair in memory.

    Masked softmax attention (1706.03762, eq. 1). A LaS span (2311.16620) multiplies the scaled logits by
    exp(-alpha_c (i-j)) before the softmax. It then smooths each row of the attention matrix A by causal average
    pooling of width P: A'_ij = 1/P sum_{p<P} A_{i,j+p}, zero beyond the last token. In an encoder the logits decay with
    |i-j|, and the mean is taken around j, over |p| <= (P-1)/2.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        span: the keys that each query sees.
        softcap: scaled logits z become softcap tanh(z / softcap) (Gemma 2, 2408.00118, section 2); 0: they stay.
        s_aux: a learned logit per head, (H,), of one more key that every query sees and whose value is 0 (gpt-oss,
            2508.10925); None: no such key.
        bidirectional: whether the model is an encoder: tokens see later ones.
        summaries: keys and values of the blocks that the span sums up, (B, G, M, D) each (LongT5, 2112.07916, section
            3.1.2).
        marked: the tokens that the task marks, (B, T) boolean; None: the first ones.

    Returns:
        (B, H, T, D) in q's precision; computed in float32 or wider.

    Example:
        >>> import torch
        >>> from layersearch import Span, reference_attention
        >>> reference_attention(*torch.ones(3, 1, 2, 4, 8), Span.parse("window:2")).shape
        torch.Size([1, 2, 4, 8])
    """
    heads, tokens, width = q.shape[1:]
    wide = torch.promote_types(q.dtype, torch.float32)
    group = heads // k.shape[1]
    queries = q.to(wide)
    keys = k.to(wide).repeat_interleave(group, dim=1)
    values = v.to(wide).repeat_interleave(group, dim=1)
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(width)  # (B, H, T, T)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if span.decay > 0:
        position = torch.arange(tokens, device=q.device, dtype=wide)
        distance = position[:, None] - position[None, :]  # (T, T)
        distance = distance.abs() if bidirectional else distance.clamp_min(0)
        alphas = torch.tensor(span.alphas(heads), device=q.device, dtype=wide)[:, None, None]
        logits = logits * torch.exp(-alphas * distance)
    visible = span_mask(span if marked is None else span.plain, tokens, heads, q.device, bidirectional=bidirectional)
    if marked is not None:
        visible = visible | marked[:, None, :, None] | marked[:, None, None, :]
    if summaries is not None:
        more_k, more_v = (x.to(wide).repeat_interleave(group, dim=1) for x in summaries)
        at = torch.arange(tokens, device=q.device)[:, None], torch.arange(more_k.shape[2], device=q.device)
        seen = span.sees_summary(*at, bidirectional=bidirectional).expand(*visible.shape[:-1], -1)
        visible = torch.cat((visible, seen), dim=-1)
        logits = torch.cat((logits, queries @ more_k.mT / math.sqrt(width)), dim=-1)
        values = torch.cat((values, more_v), dim=2)
    logits = logits.masked_fill(~visible, -math.inf)
    if s_aux is not None:
        logits = torch.cat((logits, s_aux.to(wide)[None, :, None, None].expand(*logits.shape[:3], 1)), dim=-1)
    weights = logits.softmax(dim=-1)[..., : values.shape[2]]
    if span.pool > 1:
        # P-1 zeros follow the last token, in an encoder half of them precede the first; the mean always divides by P.
        zeros = (span.pool // 2, span.pool // 2) if bidirectional else (0, span.pool - 1)
        weights = F.pad(weights, zeros).unfold(-1, span.pool, 1).mean(dim=-1)
    return (weights @ values).to(q.dtype)
